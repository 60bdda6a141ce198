"""Predictions: how far each model version is counted, the batches as they came, and where ids lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from everloop_monitor.adapters.store.sql import BIG, METADATA, upsert
from everloop_monitor.batches import Batch
from everloop_monitor.domain import Chunk, Span
from everloop_monitor.stream import Stream

__all__ = ["add", "covering", "drop_oldest", "of_chunk", "set_stream", "stream"]

_streams = sa.Table(
    "streams",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger),
    sa.Column("chunks", sa.BigInteger),
    sa.Column("chunk_start", sa.BigInteger),
)
_batches = sa.Table(
    "batches",
    METADATA,
    sa.Column("id", BIG, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.String(200)),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("first_row", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("size", sa.BigInteger),
    sa.Column("data", sa.LargeBinary),
)
_spans = sa.Table(
    "spans",
    METADATA,
    sa.Column("epoch", sa.String(16), primary_key=True),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger),
)


def stream(connection: sa.Connection, pipeline: str, version: int) -> Stream:
    """How far a model version is counted; locked until the transaction ends."""
    row = connection.execute(
        sa.select(_streams.c.rows, _streams.c.chunks, _streams.c.chunk_start)
        .where(_streams.c.pipeline == pipeline, _streams.c.version == version)
        .with_for_update()
    ).first()
    return Stream(row.rows, row.chunks, row.chunk_start) if row else Stream()


def set_stream(connection: sa.Connection, pipeline: str, version: int, counted: Stream) -> None:
    """Sets what `stream` returns."""
    values = {"rows": counted.rows, "chunks": counted.chunks, "chunk_start": counted.chunk_start}
    upsert(connection, _streams, [{"pipeline": pipeline, "version": version, **values}])


def add(
    connection: sa.Connection,
    pipeline: str,
    version: int,
    rows: int,
    batch: Batch,
    spans: Sequence[Span],
) -> None:
    """Stores a batch of predictions and where its ids lie."""
    values = {
        "event_id": batch.event_id,
        "pipeline": pipeline,
        "version": version,
        "first_row": batch.first_row,
        "rows": rows,
        "size": batch.size,
        "data": batch.data,
    }
    batch_id = connection.scalars(_batches.insert().values(**values).returning(_batches.c.id)).one()
    connection.execute(
        _spans.insert(),
        [{"epoch": s.epoch, "first": s.first, "last": s.last, "batch_id": batch_id} for s in spans],
    )


def _batch(row: Any) -> Batch:
    return Batch(row.event_id, row.first_row, row.size, row.data)


_BATCH = (_batches.c.event_id, _batches.c.first_row, _batches.c.size, _batches.c.data)


def of_chunk(connection: sa.Connection, chunk: Chunk) -> list[Batch]:
    """The batches that hold a chunk's rows, in order."""
    rows = connection.execute(
        sa.select(*_BATCH)
        .where(
            _batches.c.pipeline == chunk.pipeline,
            _batches.c.version == chunk.version,
            _batches.c.first_row < chunk.first_row + chunk.rows,
            _batches.c.first_row + _batches.c.rows > chunk.first_row,
        )
        .order_by(_batches.c.first_row)
    )
    return [_batch(row) for row in rows]


def covering(connection: sa.Connection, span: Span) -> Iterator[Batch]:
    """The batches whose spans cover a prediction id, newest first; the id may still not be in them."""
    rows = connection.execute(
        sa.select(*_BATCH)
        .join(_spans, _spans.c.batch_id == _batches.c.id)
        .where(
            _spans.c.epoch == span.epoch, _spans.c.first <= span.first, _spans.c.last >= span.last
        )
        .order_by(_spans.c.first.desc(), _batches.c.id.desc())
    )
    return (_batch(row) for row in rows)


def drop_oldest(connection: sa.Connection, pipeline: str, keep_rows: int) -> dict[int, int]:
    """Deletes the oldest batches until at most `keep_rows` rows are left.

    Returns:
        For each model version that lost rows, the first row that may be left.
    """
    kept, last = 0, None
    newest = sa.select(_batches.c.id, _batches.c.rows).where(_batches.c.pipeline == pipeline)
    for row in connection.execute(newest.order_by(_batches.c.id.desc())):
        kept += row.rows
        if kept > keep_rows:
            last = row.id
            break
    if last is None:
        return {}
    old = sa.and_(_batches.c.pipeline == pipeline, _batches.c.id <= last)
    ends = sa.select(
        _batches.c.version, sa.func.max(_batches.c.first_row + _batches.c.rows).label("end")
    ).where(old)
    lost = {row.version: row.end for row in connection.execute(ends.group_by(_batches.c.version))}
    connection.execute(
        _spans.delete().where(_spans.c.batch_id.in_(sa.select(_batches.c.id).where(old)))
    )
    connection.execute(_batches.delete().where(old))
    return lost
