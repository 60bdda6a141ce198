"""Early warnings, one per feature of a chunk."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from everloop_monitor.adapters.store.sql import BIG, METADATA, aware, delete_beyond, naive
from everloop_monitor.domain import EarlyWarning

__all__ = ["add", "after", "drop_oldest", "newest"]

_warnings = sa.Table(
    "warnings",
    METADATA,
    sa.Column("position", BIG, primary_key=True, autoincrement=True),
    sa.Column("pipeline", sa.String(63)),
    sa.Column("version", sa.BigInteger),
    sa.Column("number", sa.BigInteger),
    sa.Column("feature", sa.String(200)),
    sa.Column("seen_after", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("made_at", sa.DateTime),
)


def add(connection: sa.Connection, warning: EarlyWarning) -> bool:
    """Records a warning; False if the chunk was warned of for this feature before."""
    known = sa.select(_warnings.c.position).where(
        _warnings.c.pipeline == warning.pipeline,
        _warnings.c.version == warning.version,
        _warnings.c.number == warning.index,
        _warnings.c.feature == warning.feature,
    )
    if connection.execute(known).first() is not None:
        return False
    connection.execute(
        _warnings.insert().values(
            pipeline=warning.pipeline,
            version=warning.version,
            number=warning.index,
            feature=warning.feature,
            seen_after=warning.seen_after,
            rows=warning.rows,
            made_at=naive(warning.made_at),
        )
    )
    return True


def newest(
    connection: sa.Connection, pipeline: str, before: int | None, limit: int
) -> list[tuple[int, EarlyWarning]]:
    """Warnings with their positions, newest first, from below position `before`; an empty pipeline means all."""
    query = sa.select(_warnings)
    if pipeline:
        query = query.where(_warnings.c.pipeline == pipeline)
    if before is not None:
        query = query.where(_warnings.c.position < before)
    rows = connection.execute(query.order_by(_warnings.c.position.desc()).limit(limit))
    return [(row.position, _warning(row)) for row in rows]


def _warning(row: Any) -> EarlyWarning:
    return EarlyWarning(
        row.pipeline,
        row.version,
        row.number,
        row.feature,
        row.seen_after,
        row.rows,
        aware(row.made_at),
    )


def after(
    connection: sa.Connection, pipeline: str, position: int, limit: int
) -> list[tuple[int, EarlyWarning]]:
    """Warnings from above a position, oldest first; an empty pipeline means all."""
    query = sa.select(_warnings).where(_warnings.c.position > position)
    if pipeline:
        query = query.where(_warnings.c.pipeline == pipeline)
    rows = connection.execute(query.order_by(_warnings.c.position).limit(limit))
    return [(row.position, _warning(row)) for row in rows]


def drop_oldest(connection: sa.Connection, pipeline: str, keep: int, limit: int) -> int:
    """Deletes warnings beyond the newest `keep`, at most `limit`."""
    mine = _warnings.c.pipeline == pipeline
    return delete_beyond(connection, mine, _warnings.c.position, keep, limit)
