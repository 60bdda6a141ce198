"""Who may cut a pipeline's next version, of all processes that share the database.

Clocks only decide how soon another process takes over. What keeps two of them apart is the lease's number: it rises
with each holder, and what was begun under a lower one is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from everloop_ingest.adapters.store.sql import METADATA, Utc
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["CUT_LEASES", "Lease", "Leases", "hold"]

CUT_LEASES = sa.Table(
    "cut_leases",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("holder", sa.Text),
    sa.Column("number", sa.BigInteger),
    sa.Column("expire_time", Utc),
)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to cut a pipeline's versions, until somebody else has one with a higher number."""

    pipeline: str
    number: int


class Leases:
    """Each method is one transaction or one statement; all raise EverloopError of kind unavailable."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def take(self, pipeline: str, holder: str, now: datetime, until: datetime) -> Lease | None:
        """The lease of a pipeline; None where another holder's has not expired.

        A holder's own one is given anew at once: it was left by a crash.
        """
        row = {"pipeline": pipeline, "holder": holder, "number": 1, "expire_time": until}
        free = (CUT_LEASES.c.expire_time <= now) | (CUT_LEASES.c.holder == holder)
        number = CUT_LEASES.c.number + 1
        with self._database.unit_of_work() as work:
            insert = work.insert(CUT_LEASES).values(row)
            taken = insert.on_conflict_do_update(
                index_elements=["pipeline"],
                set_={"holder": holder, "number": number, "expire_time": until},
                where=free,
            ).returning(CUT_LEASES.c.number)
            found = work.connection.execute(taken).scalar()
            return None if found is None else Lease(pipeline, found)

    def extend(self, lease: Lease, until: datetime) -> bool:
        """Lets a lease expire later; False where it is not the current one any more."""
        with self._database.unit_of_work() as work:
            update = CUT_LEASES.update().where(_current(lease)).values(expire_time=until)
            return work.connection.execute(update).rowcount == 1

    def release(self, lease: Lease, now: datetime) -> None:
        """Lets a lease expire now."""
        self.extend(lease, now)

    def check(self, lease: Lease) -> None:
        """Returns where a lease is the current one.

        Raises:
            EverloopError: kind unavailable, reason CUT_LEASE_LOST: another process cuts this pipeline by now.
        """
        with self._database.read() as connection:
            _check(connection, lease, sa.select(CUT_LEASES.c.number))


def hold(work: UnitOfWork, lease: Lease) -> None:
    """Keeps a lease from being taken over until the transaction ends; raises as `Leases.check` does."""
    _check(work.connection, lease, sa.select(CUT_LEASES.c.number).with_for_update())


def _check(connection: sa.Connection, lease: Lease, query: sa.Select[int]) -> None:
    if connection.execute(query.where(_current(lease))).first() is None:
        raise EverloopError(
            Kind.UNAVAILABLE,
            "CUT_LEASE_LOST",
            f"another process cuts {lease.pipeline} by now; ask again with the same request_id",
        )


def _current(lease: Lease) -> sa.ColumnElement[bool]:
    return (CUT_LEASES.c.pipeline == lease.pipeline) & (CUT_LEASES.c.number == lease.number)
