"""Labels by record id, and how many events have brought some."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

import sqlalchemy as sa

from everloop_monitor.adapters.store.sql import METADATA, among, upsert

__all__ = ["add", "count", "drop_oldest", "events", "known", "pipelines"]

_actuals = sa.Table(
    "actuals",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("record_id", sa.String(512), primary_key=True),
    sa.Column("label", sa.String(200)),
    sa.Column("arrived", sa.BigInteger),  # seconds since 1970-01-01 UTC
)
_feeds = sa.Table(
    "feeds",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("events", sa.BigInteger),
)


def add(connection: sa.Connection, pipeline: str, labels: Mapping[str, str], now: datetime) -> None:
    """Stores labels by record id and counts the event; the last label of a record wins."""
    if labels:
        arrived = int(now.timestamp())
        upsert(
            connection,
            _actuals,
            [
                {"pipeline": pipeline, "record_id": record, "label": label, "arrived": arrived}
                for record, label in sorted(labels.items())  # neighbours in the tree, once each
            ],
        )
    seen = events(connection, pipeline) + 1
    upsert(connection, _feeds, [{"pipeline": pipeline, "events": seen}])


def known(connection: sa.Connection, pipeline: str, record_ids: Collection[str]) -> dict[str, str]:
    """The labels of those of the records that have one."""
    wanted = sorted({record for record in record_ids if record})
    mine = sa.select(_actuals.c.record_id, _actuals.c.label).where(_actuals.c.pipeline == pipeline)
    rows = connection.execute(mine.where(among(connection, _actuals.c.record_id, wanted)))
    return {record: label for record, label in rows}


def events(connection: sa.Connection, pipeline: str) -> int:
    """How many events have brought labels for a pipeline."""
    seen = sa.select(_feeds.c.events).where(_feeds.c.pipeline == pipeline)
    return connection.execute(seen).scalar() or 0


def pipelines(connection: sa.Connection) -> set[str]:
    """Names of the pipelines that labels have come for."""
    return set(connection.scalars(sa.select(_feeds.c.pipeline)))


def count(connection: sa.Connection, pipeline: str) -> int:
    """How many labels are stored for a pipeline."""
    stored = sa.select(sa.func.count()).where(_actuals.c.pipeline == pipeline)
    return connection.execute(stored).scalar() or 0


def drop_oldest(
    connection: sa.Connection, pipeline: str, surplus: int, before: datetime, limit: int
) -> int:
    """Deletes the oldest labels, at most `limit`: `surplus` of them, or without any those that came earlier.

    A label goes whether its prediction ever came or not.
    """
    mine = _actuals.c.pipeline == pipeline
    oldest = sa.select(_actuals.c.record_id).where(mine).order_by(_actuals.c.arrived)
    if surplus > 0:
        oldest = oldest.limit(min(surplus, limit))
    else:
        oldest = oldest.where(_actuals.c.arrived < before.timestamp()).limit(limit)
    return connection.execute(
        _actuals.delete().where(mine, _actuals.c.record_id.in_(oldest))
    ).rowcount
