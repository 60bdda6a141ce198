"""What the tables have in common: their metadata and types, moments as text, and parts of queries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

__all__ = ["METADATA", "NAME", "SERIAL", "TIME", "below", "moment", "moment_text", "of"]

METADATA = sa.MetaData()
SERIAL = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of a key that the database counts up; SQLite does so for INTEGER only."""
NAME = sa.String(63)
TIME = sa.String(32)
"""RFC 3339 in UTC with microseconds: sorts as text and means the same in every database."""


def of(table: sa.Table, model: str) -> sa.ColumnElement[bool]:
    """Rows of a model; all if the name is empty."""
    return table.c.model == model if model else sa.true()


def below(column: sa.Column[Any], position: int | None) -> sa.ColumnElement[bool]:
    """Rows of a page that starts below a position; all if there is none."""
    return sa.true() if position is None else column < position


def moment_text(time: datetime) -> str:
    """A moment as it is stored."""
    return time.astimezone(UTC).isoformat(timespec="microseconds")


def moment(text: str) -> datetime:
    """A stored moment."""
    return datetime.fromisoformat(text)
