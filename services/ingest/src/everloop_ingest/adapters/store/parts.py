"""Parts: each once, with the version that brought it and the one that has it no more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

import sqlalchemy as sa

from everloop_ingest.adapters.store.sql import ID, METADATA, Utc
from everloop_ingest.domain import Part, Version
from everloop_runtime.database import UnitOfWork

__all__ = ["PARTS", "parts_where", "replace_parts"]

PARTS = sa.Table(
    "parts",
    METADATA,
    sa.Column("id", ID, primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("md5", sa.String),
    sa.Column("sha256", sa.String),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("labelled_rows", sa.BigInteger),
    sa.Column("first_event_time", Utc),
    sa.Column("first_record_id", sa.Text),
    sa.Column("last_event_time", Utc),
    sa.Column("state", sa.Text),
    sa.Column("columns", sa.String),
    sa.Column("first_version", sa.BigInteger),
    sa.Column("until_version", sa.BigInteger),
)


def replace_parts(
    work: UnitOfWork, version: Version, added: Sequence[Part], removed: Sequence[Part]
) -> None:
    """Notes the parts that a version brings, and those that it has no more."""
    gone = (
        (PARTS.c.pipeline == version.pipeline)
        & (PARTS.c.state == sa.bindparam("gone"))
        & PARTS.c.until_version.is_(None)
    )
    if removed:
        work.connection.execute(
            PARTS.update().where(gone).values(until_version=version.number),
            [{"gone": part.state} for part in removed],
        )
    if added:
        place = {"pipeline": version.pipeline, "first_version": version.number}
        work.connection.execute(PARTS.insert(), [asdict(part) | place for part in added])


def parts_where(
    connection: sa.Connection, pipeline: str, which: sa.ColumnElement[bool]
) -> list[Part]:
    """Parts of a pipeline, in the order of their rows."""
    columns = [PARTS.c[item.name] for item in fields(Part)]
    query = sa.select(*columns).where(PARTS.c.pipeline == pipeline, which)
    found = [Part(*row) for row in connection.execute(query)]
    # Not by the database: its order of texts depends on its locale.
    return sorted(found, key=lambda part: (part.first_event_time, part.first_record_id))
