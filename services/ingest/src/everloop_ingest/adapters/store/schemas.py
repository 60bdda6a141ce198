"""The schemas that pipelines were served with."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from everloop_ingest.adapters.store.sql import METADATA, Utc
from everloop_runtime.database import Database

__all__ = ["Schemas"]

SCHEMAS = sa.Table(
    "schemas",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("document", sa.Text),
    sa.Column("create_time", Utc),
)


class Schemas:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def known(self, pipeline: str) -> dict[int, str]:
        """The schemas that a pipeline was served with, JSON by number."""
        query = sa.select(SCHEMAS.c.version, SCHEMAS.c.document).where(
            SCHEMAS.c.pipeline == pipeline
        )
        with self._database.read() as connection:
            return {row.version: row.document for row in connection.execute(query)}

    def keep(self, pipeline: str, version: int, document: str, now: datetime) -> None:
        """Remembers a schema, in the place of one with its number."""
        key = {"pipeline": pipeline, "version": version}
        row = {"document": document, "create_time": now}
        with self._database.unit_of_work() as work:
            insert = work.insert(SCHEMAS).values(key | row)
            work.connection.execute(
                insert.on_conflict_do_update(
                    index_elements=list(key), set_={"document": insert.excluded.document}
                )
            )
