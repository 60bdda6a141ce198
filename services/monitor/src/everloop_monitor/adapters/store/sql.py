"""What the tables have in common: their metadata, upserts, and moments in UTC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

__all__ = ["BIG", "METADATA", "among", "aware", "delete_beyond", "naive", "upsert"]

METADATA = sa.MetaData()
BIG = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of a key that the database counts up; SQLite does so for INTEGER only."""


def among(
    connection: sa.Connection, column: sa.Column[Any], values: Sequence[str]
) -> sa.ColumnElement[bool]:
    """Whether a column is one of many texts. They go as one parameter: thousands take longer than the query itself."""
    if connection.dialect.name == "postgresql":
        return column == sa.any_(sa.cast(list(values), postgresql.ARRAY(sa.Text)))
    listed = sa.func.json_each(json.dumps(values)).table_valued("value")
    return column.in_(sa.select(listed.c.value))


def upsert(
    connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]
) -> None:
    """Inserts rows, or replaces those with the same primary key."""
    connection.execute(_upsert(table, connection.dialect.name), [dict(row) for row in rows])


@cache
def _upsert(table: sa.Table, dialect: str) -> sa.Insert:
    # Made once: it takes as long to make as to run.
    insert = (postgresql if dialect == "postgresql" else sqlite).insert(table)
    keys = [column.name for column in table.primary_key]
    others = {c.name: insert.excluded[c.name] for c in table.columns if c.name not in keys}
    upsert: sa.Insert = insert.on_conflict_do_update(index_elements=keys, set_=others)
    return upsert


def delete_beyond(
    connection: sa.Connection,
    those: sa.ColumnElement[bool],
    order: sa.Column[Any],
    keep: int,
    limit: int,
) -> int:
    """Deletes the lowest in `order` of those rows until `keep` are left, at most `limit`; returns how many."""
    stored = connection.execute(sa.select(sa.func.count()).where(those)).scalar() or 0
    if stored <= keep:
        return 0
    (key,) = order.table.primary_key
    lowest = sa.select(key).where(those).order_by(order).limit(min(stored - keep, limit))
    return connection.execute(order.table.delete().where(key.in_(lowest))).rowcount


def naive(moment: datetime) -> datetime:
    """A moment as it is stored: in UTC, without saying so."""
    return moment.astimezone(UTC).replace(tzinfo=None)


def aware(moment: datetime) -> datetime:
    """A stored moment."""
    return moment.replace(tzinfo=UTC)
