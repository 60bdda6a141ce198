"""A service's database: migrations at start, and the unit of work with inbox and outbox."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TypeAlias

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import postgresql, sqlite

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event, encode

__all__ = ["LARGEST_MESSAGE", "Database", "Pending", "UnitOfWork", "runtime_tables"]

log = logging.getLogger(__name__)

LARGEST_MESSAGE = 1_000_000
"""Bytes of a message with key and headers: what a broker takes by default (1 MiB), less the notes of a dead letter."""

Pending: TypeAlias = "sa.Row[int, str, bytes | None, bytes, str]"
"""A message of the outbox: position, topic, key, value, headers."""


def runtime_tables(metadata: sa.MetaData) -> tuple[sa.Table, sa.Table]:
    """Adds inbox and outbox to a service's tables; its first migration calls this too."""
    inbox = sa.Table(
        "inbox",
        metadata,
        sa.Column("event_id", sa.String(200), primary_key=True),
        sa.Column("received_at", sa.DateTime, server_default=sa.func.now(), nullable=False),
    )
    outbox = sa.Table(
        "outbox",
        metadata,
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sqlite_autoincrement=True,  # a position is a name: it must not come again when its message is gone
    )
    return inbox, outbox


_INBOX, _OUTBOX = runtime_tables(sa.MetaData())


def _insert(table: sa.Table, dialect: str) -> sqlite.Insert | postgresql.Insert:
    return postgresql.insert(table) if dialect == "postgresql" else sqlite.insert(table)


@cache
def _insert_once(table: sa.Table, dialect: str) -> sa.Insert:
    # Made once: it takes as long to make as to run, and every event runs one.
    return _insert(table, dialect).on_conflict_do_nothing().returning(*table.primary_key)


class UnitOfWork:
    """One transaction: state changes, the inbox id and outgoing messages commit together or not at all."""

    def __init__(self, connection: sa.Connection) -> None:
        """Wraps the connection of an open transaction."""
        self.connection = connection
        self.published = 0

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """An insert that may say what happens on a conflict, in the words of the database that there is."""
        return _insert(table, self.connection.dialect.name)

    def insert_once(self, table: sa.Table, row: Mapping[str, object]) -> bool:
        """Inserts a row; False, and nothing changed, if there is one with its key already."""
        insert = _insert_once(table, self.connection.dialect.name)
        # Not by its row count: that of an insert is not kept with every driver (-1 with psycopg).
        return self.connection.execute(insert, row).first() is not None

    def first_time(self, event_id: str) -> bool:
        """Notes an event id in the inbox; False if it is there already, and then the caller does nothing."""
        return self.insert_once(_INBOX, {"event_id": event_id})

    def publish(self, event: Event) -> None:
        """Puts an event into the outbox; the relay sends it after the commit. See `send` for its size."""
        key, value, headers = encode(event)
        self.send(event.topic, key, value, headers)

    def send(
        self, topic: str, key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]
    ) -> None:
        """Puts a raw message into the outbox.

        Raises:
            EverloopError: kind invalid, reason MESSAGE_TOO_LARGE: beyond `LARGEST_MESSAGE` no broker would take it.
        """
        size = len(key or b"") + len(value) + sum(len(name) + len(item) for name, item in headers)
        if size > LARGEST_MESSAGE:
            raise EverloopError(
                Kind.INVALID,
                "MESSAGE_TOO_LARGE",
                f"a message for {topic} has {size} bytes, {LARGEST_MESSAGE} is the most",
                topic=topic,
            )
        names = json.dumps([(name, item.decode("latin-1")) for name, item in headers])
        self.connection.execute(
            _OUTBOX.insert().values(topic=topic, key=key, value=value, headers=names)
        )
        self.published += 1


class Database:
    """Engine of a service's database; SQLite in WAL mode or PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Opens nothing yet; the first use connects.

        Args:
            url: SQLAlchemy address; the folder of a SQLite file is made.
        """
        address = sa.make_url(url)
        self._sqlite = address.get_backend_name() == "sqlite"
        if self._sqlite and address.database:
            Path(address.database).parent.mkdir(parents=True, exist_ok=True)
        self.engine = sa.create_engine(address, pool_pre_ping=not self._sqlite)
        self._listeners: list[Callable[[], None]] = []
        # SQLite has one writer: waiting here in order is fairer than its busy loop.
        self._writer = threading.RLock()
        if self._sqlite:
            sa.event.listen(self.engine, "connect", _configure_sqlite)
            sa.event.listen(self.engine, "begin", _begin_immediate)

    def upgrade(self, migrations: Path) -> None:
        """Brings the schema to the newest migration of the folder `migrations`.

        A schema that is newer stays as it is: migrations only add, so that a version that comes back after a failed
        upgrade goes on with what the newer one has left.
        """
        config = self.alembic(migrations)
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        with self.engine.connect() as connection:
            present = set(MigrationContext.configure(connection).get_current_heads())
        if present <= known:
            command.upgrade(config, "head")
        else:
            log.warning("the database is at %s, which a newer version has made", present - known)

    def alembic(self, migrations: Path) -> Config:
        """What Alembic's own commands need to work on this database with the migrations of a folder."""
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.set_main_option("version_locations", str(migrations / "versions"))
        config.set_main_option("path_separator", "newline")
        config.attributes["engine"] = self.engine
        return config

    def on_publish(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after every commit that put something into the outbox."""
        self._listeners.append(listener)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for reading; what it sees is consistent within one statement.

        Raises:
            EverloopError: kind unavailable: the database does not answer now.
        """
        with (
            _translated(),
            self.engine.connect().execution_options(everloop_read=True) as connection,
        ):
            yield connection

    @contextmanager
    def unit_of_work(self) -> Iterator[UnitOfWork]:
        """A transaction that commits at the end of the block and rolls back on an error.

        Raises:
            EverloopError: kind unavailable: the database does not answer now; nothing is known to be committed.
        """
        with _translated(), self._writing(), self.engine.begin() as connection:
            work = UnitOfWork(connection)
            yield work
        if work.published:
            for listener in self._listeners:
                listener()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if not self._sqlite:
            yield
            return
        with self._writer:
            yield

    def pending(self, limit: int) -> Sequence[Pending]:
        """The oldest messages of the outbox."""
        columns = (
            _OUTBOX.c.position,
            _OUTBOX.c.topic,
            _OUTBOX.c.key,
            _OUTBOX.c.value,
            _OUTBOX.c.headers,
        )
        with self.read() as connection:
            oldest = sa.select(*columns).order_by(_OUTBOX.c.position).limit(limit)
            return connection.execute(oldest).all()

    def sent(self, positions: list[int]) -> None:
        """Takes messages that the broker has acknowledged out of the outbox."""
        with self.unit_of_work() as work:
            work.connection.execute(_OUTBOX.delete().where(_OUTBOX.c.position.in_(positions)))

    def forget(self, before: datetime, limit: int) -> int:
        """Drops ids of events that came before a time from the inbox, at most `limit`; returns how many."""
        # The search holds no writer up, and the transaction is short.
        old = sa.select(_INBOX.c.event_id).where(_INBOX.c.received_at < before).limit(limit)
        with self.read() as connection:
            ids = connection.scalars(old).all()
        if ids:
            with self.unit_of_work() as work:
                work.connection.execute(_INBOX.delete().where(_INBOX.c.event_id.in_(ids)))
        return len(ids)

    def close(self) -> None:
        """Closes all connections."""
        self.engine.dispose()


# What waiting can mend; SQLite reports programming errors under the same type, with other codes.
_SQLITE_AWAY = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
    }
)


@contextmanager
def _translated() -> Iterator[None]:
    """Turns an outage of the database into an error that consumers wait for instead of burying the event."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if not _away(error):
            raise
        raise EverloopError(
            Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", f"the database does not answer: {error.orig}"
        ) from error


def _away(error: sa.exc.DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # The low byte is the code, the others say more about it; 0 where Python itself refused.
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        return code in _SQLITE_AWAY
    return error.connection_invalidated or isinstance(error, sa.exc.OperationalError)


def _configure_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # we begin transactions ourselves
    cursor = connection.cursor()  # type: ignore[attr-defined]
    # FULL: a commit must survive the machine, not only the process: what it holds was acknowledged.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: sa.Connection) -> None:
    # A transaction that starts as a reader and then writes can fail with "database is locked" at once.
    reading = connection.get_execution_options().get("everloop_read")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")
