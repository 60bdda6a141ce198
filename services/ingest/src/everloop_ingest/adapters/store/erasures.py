"""Records that are to be forgotten, and the audit trail of what people did to versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import orjson
import sqlalchemy as sa

from everloop_ingest.adapters.store.parts import PARTS
from everloop_ingest.adapters.store.sql import METADATA, Utc
from everloop_ingest.domain import Audit, Version
from everloop_runtime.database import Database, UnitOfWork

__all__ = [
    "AUDIT",
    "ERASURES",
    "Erasures",
    "erasures_of",
    "is_audited",
    "note_erasures",
    "waiting_erasures",
]

ERASURES = sa.Table(
    "erasures",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("record_ids", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("create_time", Utc),
)
AUDIT = sa.Table(
    "audit",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("action", sa.String),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("create_time", Utc),
)


class Erasures:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def ask(self, entry: Audit, record_ids: Sequence[str]) -> None:
        """Makes the next version forget records; a repeat of the request changes nothing."""
        row = {
            "pipeline": entry.pipeline,
            "request_id": entry.request_id,
            "record_ids": orjson.dumps(list(record_ids)).decode(),
            "actor": entry.actor,
            "reason": entry.reason,
            "create_time": entry.create_time,
        }
        with self._database.unit_of_work() as work:
            work.insert_once(ERASURES, row)

    def asked(self, pipeline: str, request_id: str) -> bool:
        """Whether a request to erase records is known."""
        known = (ERASURES.c.pipeline == pipeline) & (ERASURES.c.request_id == request_id)
        with self._database.read() as connection:
            return (
                connection.execute(sa.select(ERASURES.c.pipeline).where(known)).first() is not None
            )

    def audited(self, pipeline: str, request_id: str) -> bool:
        """Whether a request has its entry in the audit trail."""
        with self._database.read() as connection:
            return is_audited(connection, pipeline, request_id)


def is_audited(connection: sa.Connection, pipeline: str, request_id: str) -> bool:
    """Whether a request has its entry in the audit trail."""
    known = (AUDIT.c.pipeline == pipeline) & (AUDIT.c.request_id == request_id)
    return connection.execute(sa.select(AUDIT.c.version).where(known)).first() is not None


def erasures_of(version: Version) -> sa.ColumnElement[bool]:
    """What a version is to forget, or has forgotten."""
    return (ERASURES.c.pipeline == version.pipeline) & (ERASURES.c.version == version.number)


def waiting_erasures(pipeline: str) -> sa.Select[int]:
    """How many erasures were asked for that no version has taken."""
    waiting = (ERASURES.c.pipeline == pipeline) & ERASURES.c.version.is_(None)
    return sa.select(sa.func.count()).select_from(ERASURES).where(waiting)


def note_erasures(work: UnitOfWork, version: Version) -> None:
    """Writes the audit entries of what a version has forgotten, and forgets the record ids here, too."""
    query = sa.select(ERASURES).where(erasures_of(version))
    for row in work.connection.execute(query).all():
        entry = Audit(
            row.pipeline,
            row.request_id,
            version.number,
            "ERASED",
            row.actor,
            row.reason,
            row.create_time,
        )
        # A request id that released a version earlier has its entry: it must not keep this one from its end.
        work.insert_once(AUDIT, asdict(entry))
        # The first row of an earlier part may be one of them; its time still says where the part stands.
        mine = PARTS.c.pipeline == version.pipeline
        first = PARTS.c.first_record_id.in_(orjson.loads(row.record_ids))
        work.connection.execute(PARTS.update().where(mine, first).values(first_record_id=""))
    forget = ERASURES.update().where(erasures_of(version)).values(record_ids="[]")
    work.connection.execute(forget)
