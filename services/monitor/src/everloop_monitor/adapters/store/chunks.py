"""Full chunks: what each waits for, and what its evaluation showed. Their states are the worker's queue."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from everloop_monitor.adapters.store.sql import BIG, METADATA, aware, delete_beyond, naive
from everloop_monitor.adapters.store.versions import VERSIONS
from everloop_monitor.domain import CONDITIONS, Chunk, Condition, Report

__all__ = [
    "CLOSED",
    "EVALUATED",
    "FULL",
    "add",
    "backlog",
    "by_id",
    "close_before",
    "close_beyond",
    "drop_oldest",
    "first",
    "give_up",
    "newest_alerting",
    "newest_evaluated",
    "newest_with",
    "next_full",
    "recent",
    "save_evaluation",
    "set_checked",
    "versions",
    "waiting_for_labels",
    "waiting_positions",
]

FULL, EVALUATED, CLOSED = "full", "evaluated", "closed"
"""A chunk waits for its evaluation; waits for labels; is settled."""

_REPORT = TypeAdapter(Report)

_chunks = sa.Table(
    "chunks",
    METADATA,
    sa.Column("position", BIG, primary_key=True, autoincrement=True),
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
    *(sa.Column(condition, sa.Boolean) for condition in CONDITIONS),
    sa.Column("first_event", sa.DateTime),
    sa.Column("last_event", sa.DateTime),
    sa.Column("evaluated_at", sa.DateTime),
    sa.Column("report", sa.Text),
    sa.Column("failure", sa.Text),
)


def add(
    connection: sa.Connection,
    pipeline: str,
    version: int,
    *,
    index: int,
    first_row: int,
    rows: int,
    cause: str,
    trace: str,
    now: datetime,
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
            filled_at=naive(now),
            checked=-1,
            labelled_rows=0,
            announced=False,
        )
    )


# --- reading ----------------------------------------------------------------------------------

_WITH_VERSION = _chunks.join(
    VERSIONS,
    sa.and_(VERSIONS.c.pipeline == _chunks.c.pipeline, VERSIONS.c.version == _chunks.c.version),
    isouter=True,
)
_CHUNK = sa.select(_chunks, VERSIONS.c.run_id, VERSIONS.c.promoted_at).select_from(_WITH_VERSION)


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
        promoted=row.promoted_at is not None,
        labelled_rows=row.labelled_rows,
        announced=row.announced,
        first_event=aware(row.first_event) if row.first_event else None,
        last_event=aware(row.last_event) if row.last_event else None,
        evaluated_at=aware(row.evaluated_at) if row.evaluated_at else None,
        report=_REPORT.validate_json(row.report) if row.report else None,
        failure=row.failure or "",
    )


def _except(skip: Collection[tuple[str, int]]) -> list[sa.ColumnElement[bool]]:
    return [
        sa.not_(sa.and_(_chunks.c.pipeline == pipeline, _chunks.c.version == version))
        for pipeline, version in skip
    ]


def next_full(
    connection: sa.Connection, pipeline: str, skip: Collection[tuple[str, int]], limit: int
) -> list[Chunk]:
    """The oldest full chunks of a pipeline whose version is known and not among those to skip."""
    rows = connection.execute(
        _CHUNK.where(
            _chunks.c.state == FULL,
            _chunks.c.pipeline == pipeline,
            VERSIONS.c.run_id.is_not(None),
            *_except(skip),
        )
        .order_by(_chunks.c.position)
        .limit(limit)
    )
    return [_chunk(row) for row in rows]


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


def recent(
    connection: sa.Connection, chunk: Chunk, condition: Condition, limit: int
) -> list[Chunk]:
    """The newest chunks of `chunk`'s version that have a verdict on a condition."""
    return _with_verdict(connection, chunk, condition, limit, _chunks.c.number.desc())


def first(connection: sa.Connection, chunk: Chunk, condition: Condition, limit: int) -> list[Chunk]:
    """The first chunks of `chunk`'s version that have a verdict on a condition, in order."""
    return _with_verdict(connection, chunk, condition, limit, _chunks.c.number.asc())


def _with_verdict(
    connection: sa.Connection,
    chunk: Chunk,
    condition: Condition,
    limit: int,
    order: sa.UnaryExpression[Any],
) -> list[Chunk]:
    rows = connection.execute(
        _CHUNK.where(
            _chunks.c.pipeline == chunk.pipeline,
            _chunks.c.version == chunk.version,
            _chunks.c[condition].is_not(None),
        )
        .order_by(order)
        .limit(limit)
    )
    return [_chunk(row) for row in rows]


def newest_with(connection: sa.Connection, pipeline: str, condition: Condition) -> Chunk | None:
    """The chunk of a pipeline's promoted versions that was filled last, of those with a verdict on a condition."""
    row = connection.execute(
        _CHUNK.where(
            _chunks.c.pipeline == pipeline,
            _chunks.c[condition].is_not(None),
            VERSIONS.c.promoted_at.is_not(None),
        )
        .order_by(_chunks.c.position.desc())
        .limit(1)
    ).first()
    return _chunk(row) if row else None


def newest_evaluated(
    connection: sa.Connection, pipeline: str, version: int, before: int | None, limit: int
) -> list[Chunk]:
    """Chunks that were evaluated or given up, newest first, from below position `before`.

    Version 0 and an empty pipeline mean all.
    """
    query = _CHUNK.where(_chunks.c.report.is_not(None) | _chunks.c.failure.is_not(None))
    if pipeline:
        query = query.where(_chunks.c.pipeline == pipeline)
    if version:
        query = query.where(_chunks.c.version == version)
    if before is not None:
        query = query.where(_chunks.c.position < before)
    rows = connection.execute(query.order_by(_chunks.c.position.desc()).limit(limit))
    return [_chunk(row) for row in rows]


def newest_alerting(
    connection: sa.Connection, pipeline: str, before: int | None, limit: int
) -> list[Chunk]:
    """Chunks that alert on anything, newest first, from below position `before`; an empty pipeline means all."""
    query = _CHUNK.where(sa.or_(*(_chunks.c[condition] for condition in CONDITIONS)))
    if pipeline:
        query = query.where(_chunks.c.pipeline == pipeline)
    if before is not None:
        query = query.where(_chunks.c.position < before)
    rows = connection.execute(query.order_by(_chunks.c.position.desc()).limit(limit))
    return [_chunk(row) for row in rows]


def by_id(connection: sa.Connection, pipeline: str, version: int, index: int) -> Chunk | None:
    """The chunk of that number."""
    row = connection.execute(
        _CHUNK.where(
            _chunks.c.pipeline == pipeline,
            _chunks.c.version == version,
            _chunks.c.number == index,
        )
    ).first()
    return _chunk(row) if row else None


def backlog(connection: sa.Connection, pipeline: str) -> tuple[int, datetime | None]:
    """How many full chunks wait for their evaluation, and since when the oldest whose version is known does."""
    filled_at = sa.case((VERSIONS.c.run_id.is_not(None), _chunks.c.filled_at))
    waiting, since = connection.execute(
        sa.select(sa.func.count(), sa.func.min(filled_at))
        .select_from(_WITH_VERSION)
        .where(_chunks.c.pipeline == pipeline, _chunks.c.state == FULL)
    ).one()
    return waiting, aware(since) if since else None


# --- changes of state -------------------------------------------------------------------------


def save_evaluation(
    connection: sa.Connection, chunk: Chunk, *, before: str, after: str, checked: int = -1
) -> bool:
    """Stores what an evaluation found; False, and nothing stored, if the chunk is not in state `before`."""
    verdicts: dict[str, bool | None] = {name: chunk.verdict(name) for name in CONDITIONS}
    changed = connection.execute(
        _chunks.update()
        .where(_chunks.c.position == chunk.position, _chunks.c.state == before)
        .values(
            state=after,
            checked=checked,
            labelled_rows=chunk.labelled_rows,
            announced=chunk.announced,
            first_event=naive(chunk.first_event) if chunk.first_event else None,
            last_event=naive(chunk.last_event) if chunk.last_event else None,
            evaluated_at=naive(chunk.evaluated_at) if chunk.evaluated_at else None,
            report=_REPORT.dump_json(chunk.report).decode() if chunk.report else None,
            **verdicts,
        )
    )
    return changed.rowcount == 1


def set_checked(
    connection: sa.Connection, found: Mapping[int, int], events: int, closed: Collection[int] = ()
) -> None:
    """Notes how many labels chunks (by position) had at label event number `events`, and closes some."""
    for position, labelled in found.items():
        values: dict[str, object] = {"checked": events, "labelled_rows": labelled}
        if position in closed:
            values["state"] = CLOSED
        connection.execute(_chunks.update().where(_chunks.c.position == position).values(**values))


def give_up(connection: sa.Connection, chunk: Chunk, failure: str) -> None:
    """Closes a chunk, whatever it waits for, and notes why it cannot be evaluated."""
    connection.execute(
        _chunks.update()
        .where(_chunks.c.position == chunk.position)
        .values(state=CLOSED, failure=failure)
    )


def close_before(connection: sa.Connection, pipeline: str, version: int, row: int) -> int:
    """Closes the chunks of a version that start before a row; returns how many were not evaluated."""
    early = sa.and_(
        _chunks.c.pipeline == pipeline,
        _chunks.c.version == version,
        _chunks.c.first_row < row,
        _chunks.c.state != CLOSED,
    )
    unevaluated = sa.select(sa.func.count()).where(early, _chunks.c.state == FULL)
    lost = connection.execute(unevaluated).scalar() or 0
    connection.execute(_chunks.update().where(early).values(state=CLOSED))
    return lost


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


# --- deleting ---------------------------------------------------------------------------------


def versions(connection: sa.Connection, pipeline: str) -> set[int]:
    """Model versions that chunks are left of."""
    left = sa.select(_chunks.c.version).where(_chunks.c.pipeline == pipeline)
    return set(connection.scalars(left.distinct()))


def drop_oldest(connection: sa.Connection, pipeline: str, keep: int, limit: int) -> int:
    """Deletes settled chunks beyond the newest `keep` of them, at most `limit`."""
    settled = sa.and_(_chunks.c.pipeline == pipeline, _chunks.c.state == CLOSED)
    return delete_beyond(connection, settled, _chunks.c.position, keep, limit)
