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
    "asked_for",
    "done_by",
    "erasures_of",
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
    sa.Column("digest", sa.LargeBinary),
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

    def ask(self, entry: Audit, record_ids: Sequence[str], digest: bytes) -> bytes:
        """Makes the next version forget records; where the request is known already, it changes nothing.

        Returns:
            The digest of what the request asks for: another one where another call was quicker.
        """
        row = {
            "pipeline": entry.pipeline,
            "request_id": entry.request_id,
            "record_ids": orjson.dumps(list(record_ids)).decode(),
            "actor": entry.actor,
            "reason": entry.reason,
            "create_time": entry.create_time,
            "digest": digest,
        }
        with self._database.unit_of_work() as work:
            work.insert_once(ERASURES, row)
            return asked_for(work.connection, entry.pipeline, entry.request_id) or digest

    def asked(self, pipeline: str, request_id: str) -> bytes | None:
        """Digest of what a request asks to erase; empty where it is from before these were kept; None if unknown."""
        with self._database.read() as connection:
            return asked_for(connection, pipeline, request_id)

    def audited(self, pipeline: str, request_id: str) -> bool:
        """Whether a request has its entry in the audit trail."""
        with self._database.read() as connection:
            return done_by(connection, pipeline, request_id) is not None


def asked_for(connection: sa.Connection, pipeline: str, request_id: str) -> bytes | None:
    """See `Erasures.asked`."""
    known = (ERASURES.c.pipeline == pipeline) & (ERASURES.c.request_id == request_id)
    row = connection.execute(sa.select(ERASURES.c.digest).where(known)).first()
    return None if row is None else row.digest or b""


def done_by(connection: sa.Connection, pipeline: str, request_id: str) -> tuple[int, str] | None:
    """Version and action of a request's entry in the audit trail."""
    known = (AUDIT.c.pipeline == pipeline) & (AUDIT.c.request_id == request_id)
    row = connection.execute(sa.select(AUDIT.c.version, AUDIT.c.action).where(known)).first()
    return None if row is None else (row.version, row.action)


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
