"""Dataset versions, by number and by the request that asked for them."""

from __future__ import annotations

from dataclasses import asdict, replace

import sqlalchemy as sa

from everloop_ingest.adapters.store.erasures import AUDIT
from everloop_ingest.adapters.store.parts import PARTS, parts_where
from everloop_ingest.adapters.store.sql import METADATA, Utc
from everloop_ingest.domain import DONE, Audit, ObjectFile, Part, Rows, State, Version
from everloop_runtime.database import Database

__all__ = [
    "CUT_REQUESTS",
    "IS_DONE",
    "VERSIONS",
    "Versions",
    "columns_of",
    "newest_of",
    "of_request",
]

VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.String),
    sa.Column("cause_id", sa.String),
    sa.Column("create_time", Utc),
    sa.Column("shards", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("labelled_rows", sa.BigInteger),
    sa.Column("first_event_time", Utc),
    sa.Column("last_event_time", Utc),
    sa.Column("path", sa.Text),
    sa.Column("uri", sa.Text),
    sa.Column("md5", sa.String),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("tag", sa.Text),
    sa.Column("commit", sa.String),
    sa.Column("error", sa.Text),
    sa.Column("labels", sa.Text),
    sa.Column("profile", sa.Text),
)
IS_DONE = VERSIONS.c.state.in_(DONE)
"""See `Version.done`."""
CUT_REQUESTS = sa.Table(
    "cut_requests",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("create_time", Utc),
)


class Versions:
    """Reads them; each method is one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def requested(self, pipeline: str, request_id: str) -> Version | None:
        """The version that a request has got already."""
        with self._database.read() as connection:
            return of_request(connection, pipeline, request_id)

    def get(self, pipeline: str, number: int) -> Version | None:
        """One version; 0 means the newest that is available."""
        one = VERSIONS.c.number == number
        chosen = one if number else VERSIONS.c.state == State.AVAILABLE
        query = sa.select(VERSIONS).where(VERSIONS.c.pipeline == pipeline, chosen)
        found = self._read(query.order_by(VERSIONS.c.number.desc()).limit(1))
        return found[0] if found else None

    def newest_published(self, pipeline: str) -> Version | None:
        """The newest version of a pipeline that is in its data repository."""
        with self._database.read() as connection:
            return newest_of(connection, pipeline, VERSIONS.c.md5.is_not(None))

    def page(self, pipeline: str, before: int | None, limit: int) -> list[Version]:
        """Versions of a pipeline, newest first, at most `limit`, those below number `before`."""
        query = sa.select(VERSIONS).where(VERSIONS.c.pipeline == pipeline)
        if before is not None:
            query = query.where(VERSIONS.c.number < before)
        return self._read(query.order_by(VERSIONS.c.number.desc()).limit(limit))

    def cutting(self, pipeline: str) -> list[Version]:
        """Versions of a pipeline that a crash or an outage may have left behind, oldest first."""
        query = sa.select(VERSIONS).where(
            VERSIONS.c.pipeline == pipeline, VERSIONS.c.state == State.CUTTING
        )
        return self._read(query.order_by(VERSIONS.c.number))

    def parts(self, version: Version) -> list[Part]:
        """Parts of a version, in order; none where it is not complete, or from before there were parts."""
        if not version.in_parts:
            return []
        until = PARTS.c.until_version
        there = (PARTS.c.first_version <= version.number) & (
            until.is_(None) | (until > version.number)
        )
        with self._database.read() as connection:
            return parts_where(connection, version.pipeline, there)

    def audit(self, pipeline: str, number: int) -> list[Audit]:
        """What people did to a version, oldest first."""
        entries = sa.select(AUDIT).where(AUDIT.c.pipeline == pipeline, AUDIT.c.version == number)
        with self._database.read() as connection:
            found = connection.execute(entries.order_by(AUDIT.c.create_time))
            return [Audit(**row._mapping) for row in found]

    def _read(self, query: sa.Select[tuple[object, ...]]) -> list[Version]:
        with self._database.read() as connection:
            return [_version(row) for row in connection.execute(query)]


def of_request(connection: sa.Connection, pipeline: str, request_id: str) -> Version | None:
    """The version that a request has got already."""
    request = (CUT_REQUESTS.c.pipeline == pipeline) & (CUT_REQUESTS.c.request_id == request_id)
    joined = (VERSIONS.c.pipeline == CUT_REQUESTS.c.pipeline) & (
        VERSIONS.c.number == CUT_REQUESTS.c.version
    )
    row = connection.execute(sa.select(VERSIONS).join(CUT_REQUESTS, joined).where(request)).first()
    return _version(row) if row else None


def newest_of(
    connection: sa.Connection, pipeline: str, *which: sa.ColumnElement[bool]
) -> Version | None:
    """The newest version of a pipeline, of those that are meant."""
    query = sa.select(VERSIONS).where(VERSIONS.c.pipeline == pipeline, *which)
    row = connection.execute(query.order_by(VERSIONS.c.number.desc()).limit(1)).first()
    return _version(row) if row else None


def columns_of(version: Version) -> dict[str, object]:
    """A version as a row."""
    row: dict[str, object] = {
        name: getattr(version, name)
        for name in ("pipeline", "number", "state", "cause_id", "create_time", "shards", "error")
    }
    if version.rows is not None and version.file is not None:
        row |= asdict(version.rows) | asdict(version.file)
    return row


def _version(row: sa.Row[tuple[object, ...]]) -> Version:
    base = Version(
        row.pipeline, row.number, State(row.state), row.cause_id, row.create_time, row.shards
    )
    base = replace(base, error=row.error)
    if row.md5 is None:
        return base
    rows = Rows(row.rows, row.labelled_rows, row.first_event_time, row.last_event_time)
    file = ObjectFile(row.path, row.uri, row.md5, row.size_bytes, row.tag, row.commit)
    return replace(base, rows=rows, file=file)
