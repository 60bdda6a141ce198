"""Decisions of the retrain policy, and the requests that some of them made."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from everloop_monitor.adapters.store.sql import BIG, METADATA, aware, delete_beyond, naive
from everloop_monitor.domain import (
    Chunk,
    Decision,
    Evidence,
    Outcome,
    RecordedDecision,
    Request,
)

__all__ = [
    "add",
    "add_request",
    "after",
    "answer",
    "drop_oldest",
    "newest",
    "newest_requests",
    "request_ids",
    "set_helped",
    "versions",
]

_decisions = sa.Table(
    "decisions",
    METADATA,
    sa.Column("position", BIG, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36)),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("chunk_id", sa.String(100)),
    sa.Column("action", sa.String(20)),
    sa.Column("reason", sa.Text),
    sa.Column("made_at", sa.DateTime),
    sa.Column("request_id", sa.String(36)),
    sa.Column("condition", sa.String(40)),
    sa.Column("severity", sa.Float),
    sa.Column("evidence", sa.Text),
)
_requests = sa.Table(
    "requests",
    METADATA,
    sa.Column("id", sa.String(36), primary_key=True),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("chunk_id", sa.String(100)),
    sa.Column("reason", sa.Text),
    sa.Column("made_at", sa.DateTime),
    sa.Column("condition", sa.String(40)),
    sa.Column("badness", sa.Float),
    sa.Column("outcome", sa.String(16)),
    sa.Column("answer", sa.BigInteger),
    sa.Column("helped", sa.Boolean),
)
_EVIDENCE = TypeAdapter(tuple[Evidence, ...])


def add(
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
            made_at=naive(now),
            request_id=decision.request_id,
            condition=decision.condition,
            severity=decision.severity,
            evidence=_EVIDENCE.dump_json(decision.evidence).decode(),
        )
    )


def newest(
    connection: sa.Connection, pipeline: str, before: int | None, limit: int
) -> list[RecordedDecision]:
    """Decisions, newest first, from below position `before`; an empty pipeline means all."""
    query = _of(pipeline).order_by(_decisions.c.position.desc())
    if before is not None:
        query = query.where(_decisions.c.position < before)
    return [_recorded(row) for row in connection.execute(query.limit(limit))]


def after(
    connection: sa.Connection, pipeline: str, position: int, limit: int
) -> list[RecordedDecision]:
    """Decisions from above a position, oldest first; an empty pipeline means all."""
    query = _of(pipeline).where(_decisions.c.position > position).order_by(_decisions.c.position)
    return [_recorded(row) for row in connection.execute(query.limit(limit))]


def _of(pipeline: str) -> sa.Select[Any]:
    query = sa.select(_decisions)
    return query.where(_decisions.c.pipeline == pipeline) if pipeline else query


def _recorded(row: Any) -> RecordedDecision:
    return RecordedDecision(
        row.position,
        row.id,
        row.pipeline,
        row.version,
        row.chunk_id,
        row.action,
        row.reason,
        aware(row.made_at),
        row.request_id,
        row.condition,
        row.severity,
        _EVIDENCE.validate_json(row.evidence),
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
            made_at=naive(request.made_at),
            condition=request.condition,
            badness=request.badness,
            outcome=request.outcome,
            answer=request.answer,
            helped=request.helped,
        )
    )


def newest_requests(connection: sa.Connection, pipeline: str, limit: int) -> list[Request]:
    """The requests of a pipeline, newest first."""
    rows = connection.execute(
        sa.select(_requests)
        .where(_requests.c.pipeline == pipeline)
        .order_by(_requests.c.made_at.desc())
        .limit(limit)
    )
    return [
        Request(
            row.id,
            row.pipeline,
            row.version,
            row.chunk_id,
            row.reason,
            aware(row.made_at),
            row.condition,
            row.badness,
            row.outcome,
            row.answer,
            row.helped,
        )
        for row in rows
    ]


def answer(
    connection: sa.Connection,
    pipeline: str,
    outcome: Outcome,
    *,
    version: int = 0,
    request_id: str = "",
) -> None:
    """Notes what became of the open requests of a pipeline: of one, or of those for versions before `version`."""
    which = _requests.c.id == request_id if request_id else _requests.c.version < version
    connection.execute(
        _requests.update()
        .where(_requests.c.pipeline == pipeline, _requests.c.outcome == "open", which)
        .values(outcome=outcome, answer=version if outcome == "promoted" else 0)
    )


def set_helped(connection: sa.Connection, request_id: str, helped: bool) -> None:
    """Notes whether the version that came of a request did better."""
    connection.execute(_requests.update().where(_requests.c.id == request_id).values(helped=helped))


def request_ids(connection: sa.Connection, pipeline: str, version: int) -> set[str]:
    """Ids of the requests that were made for a model version."""
    return set(
        connection.execute(
            sa.select(_requests.c.id).where(
                _requests.c.pipeline == pipeline, _requests.c.version == version
            )
        ).scalars()
    )


def versions(connection: sa.Connection, pipeline: str) -> set[int]:
    """Model versions that decisions or requests are left of."""
    found: set[int] = set()
    for table in (_decisions, _requests):
        left = sa.select(table.c.version).where(table.c.pipeline == pipeline)
        found.update(connection.scalars(left.distinct()))
    return found


def drop_oldest(connection: sa.Connection, pipeline: str, keep: int, limit: int) -> int:
    """Deletes decisions beyond the newest `keep`, at most `limit`, and likewise requests."""
    return sum(
        delete_beyond(connection, table.c.pipeline == pipeline, order, keep, limit)
        for table, order in ((_decisions, _decisions.c.position), (_requests, _requests.c.made_at))
    )
