"""The monitor's tables, and every statement that touches them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite

from everloop_monitor.batches import Batch
from everloop_monitor.domain import Chunk, Condition, Decision, Report, Request, Span

__all__ = [
    "CLOSED",
    "EVALUATED",
    "FULL",
    "DecisionRow",
    "add_actuals",
    "add_batch",
    "add_chunk",
    "add_decision",
    "add_request",
    "backlog",
    "batches_of",
    "batches_with",
    "close",
    "close_beyond",
    "count_labels",
    "drop_actuals",
    "drop_batches",
    "labels_of",
    "last_request",
    "list_chunks",
    "list_decisions",
    "newest_with",
    "next_full",
    "production",
    "recent_chunks",
    "request_ids",
    "save_evaluation",
    "set_checked",
    "set_production",
    "set_stream",
    "stream",
    "waiting_for_labels",
    "waiting_positions",
]

FULL, EVALUATED, CLOSED = "full", "evaluated", "closed"
"""A chunk waits for its evaluation; waits for labels; is settled."""

_IDS_PER_STATEMENT = 1000
_REPORT = TypeAdapter(Report)
_METADATA = sa.MetaData()
_BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")

_streams = sa.Table(
    "streams",
    _METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("rows", sa.BigInteger),
    sa.Column("chunks", sa.BigInteger),
    sa.Column("chunk_start", sa.BigInteger),
)
_batches = sa.Table(
    "batches",
    _METADATA,
    sa.Column("id", _BIG, primary_key=True, autoincrement=True),
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
    _METADATA,
    sa.Column("epoch", sa.String(16), primary_key=True),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger),
)
_actuals = sa.Table(
    "actuals",
    _METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("record_id", sa.String(512), primary_key=True),
    sa.Column("label", sa.String(200)),
    sa.Column("day", sa.Integer),
)
_feeds = sa.Table(
    "feeds",
    _METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("events", sa.BigInteger),
)
_versions = sa.Table(
    "versions",
    _METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.String(64)),
    sa.Column("production", sa.Boolean),
    sa.Column("promoted_at", sa.DateTime),
)
_chunks = sa.Table(
    "chunks",
    _METADATA,
    sa.Column("position", _BIG, primary_key=True, autoincrement=True),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("number", sa.BigInteger),
    sa.Column("first_row", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("cause", sa.String(200)),
    sa.Column("trace", sa.String(100)),
    sa.Column("state", sa.String(16)),
    sa.Column("filled_at", sa.DateTime),
    sa.Column("checked", sa.BigInteger),
    sa.Column("labelled_rows", sa.BigInteger),
    sa.Column("announced", sa.Boolean),
    sa.Column("drift", sa.Boolean),
    sa.Column("estimated_performance", sa.Boolean),
    sa.Column("realised_performance", sa.Boolean),
    sa.Column("first_event", sa.DateTime),
    sa.Column("last_event", sa.DateTime),
    sa.Column("evaluated_at", sa.DateTime),
    sa.Column("report", sa.Text),
)
_decisions = sa.Table(
    "decisions",
    _METADATA,
    sa.Column("position", _BIG, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36)),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("chunk_id", sa.String(100)),
    sa.Column("action", sa.String(20)),
    sa.Column("reason", sa.Text),
    sa.Column("made_at", sa.DateTime),
)
_requests = sa.Table(
    "requests",
    _METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("chunk_id", sa.String(100)),
    sa.Column("reason", sa.Text),
    sa.Column("made_at", sa.DateTime),
)


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """A recorded decision."""

    position: int
    id: str
    pipeline: str
    version: int
    chunk_id: str
    action: str
    reason: str
    made_at: datetime


def _upsert(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]
) -> None:
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    insert = dialect.insert(table)
    keys = [column.name for column in table.primary_key]
    others = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
    connection.execute(
        insert.on_conflict_do_update(index_elements=keys, set_=others), [dict(row) for row in rows]
    )


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None)


def _aware(moment: datetime | None) -> datetime | None:
    return moment.replace(tzinfo=UTC) if moment else None


# --- predictions ------------------------------------------------------------------------------


def stream(connection: sa.Connection, pipeline: str, version: int) -> tuple[int, int, int]:
    """Rows, chunks and start of the open chunk of a model version; locked until the transaction ends."""
    row = connection.execute(
        sa.select(_streams.c.rows, _streams.c.chunks, _streams.c.chunk_start)
        .where(_streams.c.pipeline == pipeline, _streams.c.version == version)
        .with_for_update()
    ).first()
    return (row.rows, row.chunks, row.chunk_start) if row else (0, 0, 0)


def set_stream(
    connection: sa.Connection, pipeline: str, version: int, rows: int, chunks: int, chunk_start: int
) -> None:
    """Sets what `stream` returns."""
    values = {"rows": rows, "chunks": chunks, "chunk_start": chunk_start}
    _upsert(connection, _streams, [{"pipeline": pipeline, "version": version, **values}])


def add_batch(
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
    (batch_id,) = connection.execute(_batches.insert().values(**values)).inserted_primary_key or (
        0,
    )
    connection.execute(
        _spans.insert(),
        [{"epoch": s.epoch, "first": s.first, "last": s.last, "batch_id": batch_id} for s in spans],
    )


def _batch(row: Any) -> Batch:
    return Batch(row.event_id, row.first_row, row.size, row.data)


_BATCH = (_batches.c.event_id, _batches.c.first_row, _batches.c.size, _batches.c.data)


def batches_of(connection: sa.Connection, chunk: Chunk) -> list[Batch]:
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


def batches_with(connection: sa.Connection, span: Span) -> Iterator[Batch]:
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


def drop_batches(connection: sa.Connection, pipeline: str, keep_rows: int) -> int:
    """Deletes the oldest batches until at most `keep_rows` rows are left, and closes chunks that lose rows."""
    kept, last = 0, None
    newest = sa.select(_batches.c.id, _batches.c.rows).where(_batches.c.pipeline == pipeline)
    for row in connection.execute(newest.order_by(_batches.c.id.desc())):
        kept += row.rows
        if kept > keep_rows:
            last = row.id
            break
    if last is None:
        return 0
    old = sa.and_(_batches.c.pipeline == pipeline, _batches.c.id <= last)
    lost = connection.execute(
        sa.select(
            _batches.c.version, sa.func.max(_batches.c.first_row + _batches.c.rows).label("end")
        )
        .where(old)
        .group_by(_batches.c.version)
    ).all()
    for version, end in lost:
        connection.execute(
            _chunks.update()
            .where(
                _chunks.c.pipeline == pipeline,
                _chunks.c.version == version,
                _chunks.c.first_row < end,
                _chunks.c.state != CLOSED,
            )
            .values(state=CLOSED)
        )
    connection.execute(
        _spans.delete().where(_spans.c.batch_id.in_(sa.select(_batches.c.id).where(old)))
    )
    return connection.execute(_batches.delete().where(old)).rowcount


# --- labels -----------------------------------------------------------------------------------


def _day(moment: datetime) -> int:
    return int(moment.timestamp() // 86400)


def add_actuals(
    connection: sa.Connection, pipeline: str, labels: Mapping[str, str], now: datetime
) -> None:
    """Stores labels by record id; the last one wins."""
    if labels:
        day = _day(now)
        _upsert(
            connection,
            _actuals,
            [
                {"pipeline": pipeline, "record_id": record, "label": label, "day": day}
                for record, label in sorted(labels.items())  # neighbours in the tree, once each
            ],
        )
    events = sa.select(_feeds.c.events).where(_feeds.c.pipeline == pipeline)
    seen = connection.execute(events).scalar() or 0
    _upsert(connection, _feeds, [{"pipeline": pipeline, "events": seen + 1}])


def labels_of(
    connection: sa.Connection, pipeline: str, record_ids: Collection[str]
) -> dict[str, str]:
    """The known labels of records."""
    wanted = sorted({record for record in record_ids if record})
    known: dict[str, str] = {}
    for start in range(0, len(wanted), _IDS_PER_STATEMENT):
        some = wanted[start : start + _IDS_PER_STATEMENT]
        rows = connection.execute(
            sa.select(_actuals.c.record_id, _actuals.c.label).where(
                _actuals.c.pipeline == pipeline, _actuals.c.record_id.in_(some)
            )
        )
        known.update((row.record_id, row.label) for row in rows)
    return known


def count_labels(connection: sa.Connection, pipeline: str) -> int:
    """Events with labels that have come for a pipeline."""
    events = sa.select(_feeds.c.events).where(_feeds.c.pipeline == pipeline)
    return connection.execute(events).scalar() or 0


def drop_actuals(connection: sa.Connection, now: datetime, days: int) -> int:
    """Deletes labels that came more than `days` ago."""
    old = _actuals.c.day < _day(now - timedelta(days=days))
    return connection.execute(_actuals.delete().where(old)).rowcount


# --- versions ---------------------------------------------------------------------------------


def set_production(
    connection: sa.Connection, pipeline: str, version: int, run_id: str, now: datetime
) -> None:
    """Makes a version the one in Production."""
    connection.execute(
        _versions.update().where(_versions.c.pipeline == pipeline).values(production=False)
    )
    values = {"run_id": run_id, "production": True, "promoted_at": _naive(now)}
    _upsert(connection, _versions, [{"pipeline": pipeline, "version": version, **values}])


def production(connection: sa.Connection, pipeline: str) -> int:
    """The version in Production; 0 if none is known."""
    return (
        connection.execute(
            sa.select(_versions.c.version)
            .where(_versions.c.pipeline == pipeline, _versions.c.production)
            # One decision about a pipeline at a time, also with several replicas.
            .with_for_update()
        ).scalar()
        or 0
    )


# --- chunks -----------------------------------------------------------------------------------


def add_chunk(
    connection: sa.Connection,
    pipeline: str,
    version: int,
    index: int,
    first_row: int,
    rows: int,
    cause: str,
    trace: str,
) -> None:
    """Notes a full chunk, with the event that filled it and the trace it belongs to."""
    connection.execute(
        _chunks.insert().values(
            pipeline=pipeline,
            version=version,
            number=index,
            first_row=first_row,
            rows=rows,
            cause=cause,
            trace=trace,
            state=FULL,
            filled_at=_naive(datetime.now(UTC)),
            checked=-1,
            labelled_rows=0,
            announced=False,
        )
    )


def _chunk(row: Any) -> Chunk:
    return Chunk(
        position=row.position,
        pipeline=row.pipeline,
        version=row.version,
        index=row.number,
        first_row=row.first_row,
        rows=row.rows,
        cause=row.cause,
        trace=row.trace,
        run_id=row.run_id or "",
        labelled_rows=row.labelled_rows,
        announced=row.announced,
        first_event=_aware(row.first_event),
        last_event=_aware(row.last_event),
        evaluated_at=_aware(row.evaluated_at),
        report=_REPORT.validate_json(row.report) if row.report else None,
    )


_CHUNK = sa.select(_chunks, _versions.c.run_id).join(
    _versions,
    sa.and_(_versions.c.pipeline == _chunks.c.pipeline, _versions.c.version == _chunks.c.version),
    isouter=True,
)


def _except(skip: Collection[tuple[str, int]]) -> list[sa.ColumnElement[bool]]:
    return [
        sa.not_(sa.and_(_chunks.c.pipeline == pipeline, _chunks.c.version == version))
        for pipeline, version in skip
    ]


def next_full(
    connection: sa.Connection, pipelines: Collection[str], skip: Collection[tuple[str, int]]
) -> Chunk | None:
    """The oldest full chunk of these pipelines whose version is known and not among those to skip."""
    row = connection.execute(
        _CHUNK.where(
            _chunks.c.state == FULL,
            _chunks.c.pipeline.in_(pipelines),
            _versions.c.run_id.is_not(None),
            *_except(skip),
        )
        .order_by(_chunks.c.position)
        .limit(1)
    ).first()
    return _chunk(row) if row else None


def waiting_for_labels(
    connection: sa.Connection, pipeline: str, events: int, skip: Collection[tuple[str, int]]
) -> list[Chunk]:
    """Evaluated chunks that have not been looked at since label event number `events`, oldest first."""
    rows = connection.execute(
        _CHUNK.where(
            _chunks.c.pipeline == pipeline,
            _chunks.c.state == EVALUATED,
            _chunks.c.checked < events,
            *_except(skip),
        ).order_by(_chunks.c.position)
    )
    return [_chunk(row) for row in rows]


def waiting_positions(connection: sa.Connection) -> set[int]:
    """Positions of all chunks that wait for labels."""
    return set(
        connection.scalars(sa.select(_chunks.c.position).where(_chunks.c.state == EVALUATED))
    )


def close(connection: sa.Connection, chunk: Chunk) -> None:
    """Closes a chunk, whatever it waits for."""
    connection.execute(
        _chunks.update().where(_chunks.c.position == chunk.position).values(state=CLOSED)
    )


def set_checked(
    connection: sa.Connection, found: Mapping[int, int], events: int, closed: Collection[int] = ()
) -> None:
    """Notes how many labels chunks (by position) had at label event number `events`, and closes some."""
    for position, labelled in found.items():
        values: dict[str, object] = {"checked": events, "labelled_rows": labelled}
        if position in closed:
            values["state"] = CLOSED
        connection.execute(_chunks.update().where(_chunks.c.position == position).values(**values))


def close_beyond(connection: sa.Connection, pipeline: str, waiting: int) -> int:
    """Closes chunks that wait for labels, but for the newest `waiting`."""
    newest = (
        sa.select(_chunks.c.position)
        .where(_chunks.c.pipeline == pipeline, _chunks.c.state == EVALUATED)
        .order_by(_chunks.c.position.desc())
        .limit(1)
        .offset(waiting)
    )
    last = connection.execute(newest).scalar()
    if last is None:
        return 0
    return connection.execute(
        _chunks.update()
        .where(
            _chunks.c.pipeline == pipeline,
            _chunks.c.state == EVALUATED,
            _chunks.c.position <= last,
        )
        .values(state=CLOSED)
    ).rowcount


def save_evaluation(
    connection: sa.Connection, chunk: Chunk, *, before: str, after: str, checked: int = -1
) -> bool:
    """Stores what an evaluation found; False, and nothing stored, if the chunk is not in state `before`."""
    verdicts: dict[str, bool | None] = {
        name: chunk.verdict(name)
        for name in ("drift", "estimated_performance", "realised_performance")
    }
    changed = connection.execute(
        _chunks.update()
        .where(_chunks.c.position == chunk.position, _chunks.c.state == before)
        .values(
            state=after,
            checked=checked,
            labelled_rows=chunk.labelled_rows,
            announced=chunk.announced,
            first_event=_naive(chunk.first_event) if chunk.first_event else None,
            last_event=_naive(chunk.last_event) if chunk.last_event else None,
            evaluated_at=_naive(chunk.evaluated_at) if chunk.evaluated_at else None,
            report=_REPORT.dump_json(chunk.report).decode() if chunk.report else None,
            **verdicts,
        )
    )
    return changed.rowcount == 1


def recent_chunks(
    connection: sa.Connection, chunk: Chunk, condition: Condition, limit: int
) -> list[Chunk]:
    """The newest chunks of `chunk`'s version that have a verdict on a condition."""
    rows = connection.execute(
        _CHUNK.where(
            _chunks.c.pipeline == chunk.pipeline,
            _chunks.c.version == chunk.version,
            _chunks.c[condition].is_not(None),
        )
        .order_by(_chunks.c.number.desc())
        .limit(limit)
    )
    return [_chunk(row) for row in rows]


def newest_with(connection: sa.Connection, pipeline: str, condition: Condition) -> Chunk | None:
    """The chunk of a pipeline that was filled last among those with a verdict on a condition."""
    row = connection.execute(
        _CHUNK.where(_chunks.c.pipeline == pipeline, _chunks.c[condition].is_not(None))
        .order_by(_chunks.c.position.desc())
        .limit(1)
    ).first()
    return _chunk(row) if row else None


def backlog(connection: sa.Connection, pipeline: str) -> tuple[int, datetime | None]:
    """How many full chunks wait for their evaluation, and since when the oldest does."""
    row = connection.execute(
        sa.select(sa.func.count(), sa.func.min(_chunks.c.filled_at)).where(
            _chunks.c.pipeline == pipeline, _chunks.c.state == FULL
        )
    ).one()
    return row[0], _aware(row[1])


def list_chunks(
    connection: sa.Connection, pipeline: str, version: int, before: int | None, limit: int
) -> list[Chunk]:
    """Evaluated chunks, newest first, from below position `before`; version 0 and an empty pipeline mean all."""
    query = _CHUNK.where(_chunks.c.report.is_not(None))
    if pipeline:
        query = query.where(_chunks.c.pipeline == pipeline)
    if version:
        query = query.where(_chunks.c.version == version)
    if before is not None:
        query = query.where(_chunks.c.position < before)
    rows = connection.execute(query.order_by(_chunks.c.position.desc()).limit(limit))
    return [_chunk(row) for row in rows]


# --- decisions --------------------------------------------------------------------------------


def last_request(connection: sa.Connection, pipeline: str) -> Request | None:
    """The newest request of a pipeline."""
    row = connection.execute(
        sa.select(_requests)
        .where(_requests.c.pipeline == pipeline)
        .order_by(_requests.c.made_at.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    made_at = row.made_at.replace(tzinfo=UTC)
    return Request(row.id, row.pipeline, row.version, row.chunk_id, row.reason, made_at)


def request_ids(connection: sa.Connection, pipeline: str, version: int) -> set[str]:
    """Ids of the requests that were made for a model version."""
    return set(
        connection.execute(
            sa.select(_requests.c.id).where(
                _requests.c.pipeline == pipeline, _requests.c.version == version
            )
        ).scalars()
    )


def add_request(connection: sa.Connection, request: Request) -> None:
    """Records a request."""
    connection.execute(
        _requests.insert().values(
            id=request.id,
            pipeline=request.pipeline,
            version=request.version,
            chunk_id=request.chunk_id,
            reason=request.reason,
            made_at=_naive(request.made_at),
        )
    )


def add_decision(
    connection: sa.Connection, chunk: Chunk, decision_id: str, decision: Decision, now: datetime
) -> None:
    """Records a decision."""
    connection.execute(
        _decisions.insert().values(
            id=decision_id,
            pipeline=chunk.pipeline,
            version=chunk.version,
            chunk_id=chunk.id,
            action=decision.action,
            reason=decision.reason,
            made_at=_naive(now),
        )
    )


def list_decisions(
    connection: sa.Connection, pipeline: str, before: int | None, limit: int
) -> list[DecisionRow]:
    """Decisions, newest first, from below position `before`; an empty pipeline means all."""
    query = sa.select(_decisions)
    if pipeline:
        query = query.where(_decisions.c.pipeline == pipeline)
    if before is not None:
        query = query.where(_decisions.c.position < before)
    rows = connection.execute(query.order_by(_decisions.c.position.desc()).limit(limit))
    return [
        DecisionRow(
            row.position,
            row.id,
            row.pipeline,
            row.version,
            row.chunk_id,
            row.action,
            row.reason,
            row.made_at.replace(tzinfo=UTC),
        )
        for row in rows
    ]
