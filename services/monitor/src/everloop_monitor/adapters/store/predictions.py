"""Predictions: how far each model version is counted, the batches as they came, and where ids lie."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from everloop_monitor.adapters.store.sql import BIG, METADATA, upsert
from everloop_monitor.batches import Batch
from everloop_monitor.domain import Chunk, Span
from everloop_monitor.stream import Stream

__all__ = [
    "add",
    "counted_versions",
    "covering",
    "drop_oldest",
    "forget_versions",
    "of_chunk",
    "of_rows",
    "pipelines",
    "set_stream",
    "stored_versions",
    "stream",
]

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


# What each event runs is made once: a statement takes as long to make as to run.
_STREAM = sa.select(_streams.c.rows, _streams.c.chunks, _streams.c.chunk_start).where(
    _streams.c.pipeline == sa.bindparam("of_pipeline"),
    _streams.c.version == sa.bindparam("of_version"),
)
_STREAM_LOCKED = _STREAM.with_for_update()
_ADD = _batches.insert().returning(_batches.c.id)
_ADD_SPANS = _spans.insert()


def stream(connection: sa.Connection, pipeline: str, version: int, *, lock: bool = True) -> Stream:
    """How far a model version is counted; locked until the transaction ends, unless it is only looked at."""
    of = {"of_pipeline": pipeline, "of_version": version}
    row = connection.execute(_STREAM_LOCKED if lock else _STREAM, of).first()
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
    batch_id = connection.scalars(_ADD, values).one()
    connection.execute(
        _ADD_SPANS,
        [{"epoch": s.epoch, "first": s.first, "last": s.last, "batch_id": batch_id} for s in spans],
    )


def _batch(row: Any) -> Batch:
    return Batch(row.event_id, row.first_row, row.size, row.data)


_BATCH = (_batches.c.event_id, _batches.c.first_row, _batches.c.size, _batches.c.data)


def of_chunk(connection: sa.Connection, chunk: Chunk) -> list[Batch]:
    """The batches that hold a chunk's rows, in order."""
    return of_rows(connection, chunk.pipeline, chunk.version, chunk.first_row, chunk.rows)


def of_rows(
    connection: sa.Connection, pipeline: str, version: int, first_row: int, rows: int
) -> list[Batch]:
    """The batches that hold `rows` rows of a version from row `first_row` on, in order."""
    found = connection.execute(
        sa.select(*_BATCH)
        .where(
            _batches.c.pipeline == pipeline,
            _batches.c.version == version,
            _batches.c.first_row < first_row + rows,
            _batches.c.first_row + _batches.c.rows > first_row,
        )
        .order_by(_batches.c.first_row)
    )
    return [_batch(row) for row in found]


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


def pipelines(connection: sa.Connection) -> set[str]:
    """Names of the pipelines that predictions have come for."""
    return set(connection.scalars(sa.select(_streams.c.pipeline).distinct()))


def drop_oldest(
    connection: sa.Connection, pipeline: str, keep_rows: int, limit: int
) -> tuple[int, dict[int, int]]:
    """Deletes the oldest batches, at most `limit` of them, until at most `keep_rows` rows are left.

    An open chunk that loses rows starts again at the first that is left.

    Returns:
        How many rows went; and, for each model version that lost rows, the first row that may be left.
    """
    mine = _batches.c.pipeline == pipeline
    stored = connection.execute(sa.select(sa.func.sum(_batches.c.rows)).where(mine)).scalar() or 0
    oldest = sa.select(_batches.c.id, _batches.c.version, _batches.c.first_row, _batches.c.rows)
    gone: list[int] = []
    dropped = 0
    starts: dict[int, int] = {}
    for row in connection.execute(oldest.where(mine).order_by(_batches.c.id).limit(limit)):
        if stored - dropped <= keep_rows:
            break
        gone.append(row.id)
        dropped += row.rows
        starts[row.version] = row.first_row + row.rows
    connection.execute(_spans.delete().where(_spans.c.batch_id.in_(gone)))
    connection.execute(_batches.delete().where(_batches.c.id.in_(gone)))
    for version, start in starts.items():
        open_chunk = sa.and_(_streams.c.pipeline == pipeline, _streams.c.version == version)
        connection.execute(
            _streams.update()
            .where(open_chunk, _streams.c.chunk_start < start)
            .values(chunk_start=start)
        )
    return dropped, starts


def counted_versions(connection: sa.Connection, pipeline: str) -> set[int]:
    """Model versions that predictions have come of."""
    return set(
        connection.scalars(sa.select(_streams.c.version).where(_streams.c.pipeline == pipeline))
    )


def stored_versions(connection: sa.Connection, pipeline: str) -> set[int]:
    """Model versions that predictions are left of."""
    stored = sa.select(_batches.c.version).where(_batches.c.pipeline == pipeline)
    return set(connection.scalars(stored.distinct()))


def forget_versions(connection: sa.Connection, pipeline: str, versions: Collection[int]) -> None:
    """Forgets how far versions of which nothing is left were counted; predictions of them would start at 0."""
    connection.execute(
        _streams.delete().where(_streams.c.pipeline == pipeline, _streams.c.version.in_(versions))
    )
