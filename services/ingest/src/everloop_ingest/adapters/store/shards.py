"""Shards with their books: what a settled batch has left in the data bucket."""

from __future__ import annotations

import sqlalchemy as sa

from everloop_ingest.adapters.store.sql import ID, METADATA, Utc

__all__ = ["SHARDS", "in_no_version", "stored"]

SHARDS = sa.Table(
    "shards",
    METADATA,
    sa.Column("id", ID, primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("topic", sa.String),
    sa.Column("partition", sa.Integer),
    sa.Column("first_offset", sa.BigInteger),
    sa.Column("last_offset", sa.BigInteger),
    sa.Column("key", sa.Text),
    sa.Column("accepted", sa.BigInteger),
    sa.Column("actuals", sa.BigInteger),
    sa.Column("rejected", sa.BigInteger),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("first_event_time", Utc),
    sa.Column("last_event_time", Utc),
    sa.Column("create_time", Utc),
    sa.Column("first_version", sa.BigInteger),
    sa.Column("lost", sa.Boolean),
    sa.Column("merged", sa.Boolean),
    sa.Column("reclaimed", sa.Boolean),
    sa.Column("trace", sa.String),
)


def stored(pipeline: str) -> sa.ColumnElement[bool]:
    """Shards whose object is there."""
    return (SHARDS.c.pipeline == pipeline) & (SHARDS.c.key != "") & SHARDS.c.lost.is_(False)


def in_no_version(pipeline: str) -> sa.ColumnElement[bool]:
    """Shards that the next version takes."""
    return stored(pipeline) & SHARDS.c.first_version.is_(None)
