"""Which replica evaluates a chunk, while it does: a lock that ends with its process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from everloop_runtime.database import Database

__all__ = ["claimed"]

_CHUNKS = 0x6576_6572  # tells these locks from those of others in the same database


@contextmanager
def claimed(database: Database, position: int) -> Iterator[bool]:
    """Holds the chunk at a position; False if another replica does.

    PostgreSQL gives the lock up when the connection ends, however the process does: nothing has to expire. SQLite has
    one replica.
    """
    if database.engine.dialect.name != "postgresql":
        yield True
        return
    key = sa.select(sa.func.pg_try_advisory_lock(_CHUNKS, sa.cast(position, sa.Integer)))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        held = bool(connection.scalar(key))
        try:
            yield held
        finally:
            if held:
                connection.execute(
                    sa.select(sa.func.pg_advisory_unlock(_CHUNKS, sa.cast(position, sa.Integer)))
                )
