"""Who may work on a pipeline, of all processes that share a database.

Clocks only decide how soon another process takes over. What keeps two of them apart is the lease's number: it rises
with each holder, and what was begun under a lower one is refused.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["LEASE_LOST", "Lease", "Leases", "lease_table"]

log = logging.getLogger(__name__)

LEASE_LOST = "LEASE_LOST"
"""Reason of what is refused because another process works on the pipeline by now."""
_EXTENSIONS = 3
"""Of a lease, before it would expire."""


def lease_table(name: str, metadata: sa.MetaData) -> sa.Table:
    """Adds a table of leases to a service's tables; the migration that makes it calls this too."""
    return sa.Table(
        name,
        metadata,
        sa.Column("pipeline", sa.String(63), primary_key=True),
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("expire_time", sa.DateTime, nullable=False),  # UTC
    )


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a pipeline, until somebody else has one with a higher number."""

    pipeline: str
    number: int


class Leases:
    """Leases of one kind of work. Each method raises EverloopError of kind unavailable where the database is away."""

    def __init__(self, database: Database, table: str) -> None:
        """Takes the service's database and the name of the table, which `lease_table` made."""
        self._database = database
        self._table = lease_table(table, sa.MetaData())

    def take(self, pipeline: str, holder: str, now: datetime, until: datetime) -> Lease | None:
        """The lease of a pipeline; None where another holder's has not expired.

        A holder's own one is given anew at once: it was left by a crash.
        """
        columns = self._table.c
        changed = {"holder": holder, "expire_time": _utc(until)}
        free = (columns.expire_time <= _utc(now)) | (columns.holder == holder)
        with self._database.unit_of_work() as work:
            insert = work.insert(self._table).values(pipeline=pipeline, number=1, **changed)
            taken = insert.on_conflict_do_update(
                index_elements=["pipeline"],
                set_={"number": columns.number + 1, **changed},
                where=free,
            ).returning(columns.number)
            found = work.connection.execute(taken).scalar()
            return None if found is None else Lease(pipeline, found)

    def take_now(self, pipeline: str, holder: str, lasts: timedelta) -> Lease | None:
        """As `take`, from now on."""
        now = datetime.now(UTC)
        return self.take(pipeline, holder, now, now + lasts)

    def extend(self, lease: Lease, until: datetime) -> bool:
        """Lets a lease expire later; False where it is not the current one any more."""
        update = self._table.update().where(self._current(lease)).values(expire_time=_utc(until))
        with self._database.unit_of_work() as work:
            return work.connection.execute(update).rowcount == 1

    def release(self, lease: Lease, now: datetime) -> None:
        """Lets a lease expire now."""
        self.extend(lease, now)

    @contextmanager
    def kept(self, lease: Lease, lasts: timedelta) -> Iterator[None]:
        """Extends a lease again and again, in a thread, and releases it in the end.

        Whoever works finds out by `check` and `hold` where it was lost all the same.
        """
        done = threading.Event()
        extending = threading.Thread(
            target=self._extend,
            args=(lease, lasts, done),
            name=f"lease of {lease.pipeline}",
            daemon=True,
        )
        extending.start()
        try:
            yield
        finally:
            done.set()
            extending.join()
            with suppress(EverloopError):  # else it expires by itself
                self.release(lease, datetime.now(UTC))

    def check(self, lease: Lease) -> None:
        """Returns where a lease is the current one.

        Raises:
            EverloopError: kind unavailable, reason LEASE_LOST: another process works on this pipeline by now.
        """
        with self._database.read() as connection:
            self._find(connection, lease, sa.select(self._table.c.number))

    def hold(self, work: UnitOfWork, lease: Lease) -> None:
        """Keeps a lease from being taken over until the transaction ends; raises as `check` does."""
        self._find(work.connection, lease, sa.select(self._table.c.number).with_for_update())

    def _find(self, connection: sa.Connection, lease: Lease, query: sa.Select[int]) -> None:
        if connection.execute(query.where(self._current(lease))).first() is None:
            raise EverloopError(
                Kind.UNAVAILABLE,
                LEASE_LOST,
                f"another process works on {lease.pipeline} by now; ask again with the same request_id",
            )

    def _current(self, lease: Lease) -> sa.ColumnElement[bool]:
        columns = self._table.c
        return (columns.pipeline == lease.pipeline) & (columns.number == lease.number)

    def _extend(self, lease: Lease, lasts: timedelta, done: threading.Event) -> None:
        while not done.wait(lasts.total_seconds() / _EXTENSIONS):
            try:
                if not self.extend(lease, datetime.now(UTC) + lasts):
                    return
            except EverloopError as error:
                log.warning("the lease of %s is not extended: %s", lease.pipeline, error)


def _utc(time: datetime) -> datetime:
    """Without a zone: SQLite keeps none."""
    return time.astimezone(UTC).replace(tzinfo=None)
