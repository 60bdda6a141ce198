"""What the tables have in common."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

__all__ = ["ID", "METADATA", "Utc"]

METADATA = sa.MetaData()
ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
"""Type of a key that the database counts up; SQLite does so for INTEGER only."""


class Utc(sa.types.TypeDecorator[datetime]):
    """An instant, kept as UTC without a zone: SQLite has none to keep."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """What the database gets."""
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        """What it gives."""
        return value.replace(tzinfo=UTC) if value else None
