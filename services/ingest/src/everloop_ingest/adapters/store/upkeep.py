"""What keeps the data bucket small: which shards to put together, and which objects no later version needs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from everloop_ingest.adapters.store.letters import LETTER_FILES
from everloop_ingest.adapters.store.parts import PARTS
from everloop_ingest.adapters.store.shards import SHARDS, in_no_version, stored
from everloop_ingest.adapters.store.versions import IS_DONE, VERSIONS
from everloop_ingest.domain import Reclaimable
from everloop_runtime.database import Database

__all__ = ["Upkeep"]


class Upkeep:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def small_shards(self, pipeline: str, rows: int, limit: int) -> list[tuple[str, int]]:
        """Objects of at most `rows` rows that no version has yet, with their rows; the oldest `limit`."""
        small = sa.select(SHARDS.c.key, SHARDS.c.accepted).where(
            in_no_version(pipeline),
            SHARDS.c.accepted <= rows,
            SHARDS.c.key.not_in(_shared(pipeline)),
        )
        with self._database.read() as connection:
            found = connection.execute(small.order_by(SHARDS.c.id).limit(limit))
            return [(row.key, row.accepted) for row in found]

    def put_together(self, pipeline: str, keys: Sequence[str], key: str) -> bool:
        """Says that the rows of objects are in one object now; False where a version has taken one of them."""
        all_of_them = in_no_version(pipeline) & SHARDS.c.key.in_(keys)
        with self._database.unit_of_work() as work:
            free = work.connection.execute(
                sa.select(SHARDS.c.id).where(all_of_them).with_for_update()
            ).all()
            if len(free) != len(keys):
                return False
            work.connection.execute(SHARDS.update().where(all_of_them).values(key=key))
            return True

    def unnamed(self, pipeline: str, keys: Sequence[str]) -> list[str]:
        """Those of some paths that no row of a pipeline names."""
        columns = (
            (SHARDS.c.pipeline, SHARDS.c.key),
            (LETTER_FILES.c.pipeline, LETTER_FILES.c.key),
            (PARTS.c.pipeline, PARTS.c.state),
            (VERSIONS.c.pipeline, VERSIONS.c.labels),
        )
        with self._database.read() as connection:
            named = {
                key
                for of, path in columns
                for key in connection.execute(
                    sa.select(path).where(of == pipeline, path.in_(keys))
                ).scalars()
            }
        return [key for key in keys if key not in named]

    def reclaimable(self, pipeline: str, before: datetime, limit: int) -> Reclaimable:
        """Objects that no later version needs, replaced before a moment; of each kind the oldest `limit`."""
        old = sa.select(VERSIONS.c.number).where(
            VERSIONS.c.pipeline == pipeline, VERSIONS.c.create_time < before
        )
        held = sa.select(PARTS.c.state).where(
            PARTS.c.pipeline == pipeline, PARTS.c.until_version.is_(None)
        )
        mine = (VERSIONS.c.pipeline == pipeline) & IS_DONE
        newest = sa.select(VERSIONS.c.labels).where(mine).order_by(VERSIONS.c.number.desc())
        queries = (
            sa.select(SHARDS.c.key)
            .where(
                stored(pipeline),
                SHARDS.c.merged == sa.true(),
                SHARDS.c.reclaimed == sa.false(),
                SHARDS.c.first_version.in_(old),
            )
            .order_by(SHARDS.c.id),
            sa.select(PARTS.c.state)
            .where(PARTS.c.pipeline == pipeline, PARTS.c.until_version.in_(old))
            .where(PARTS.c.state != "", PARTS.c.state.not_in(held))
            .order_by(PARTS.c.id),
            sa.select(VERSIONS.c.labels)
            .where(mine, VERSIONS.c.number.in_(old), VERSIONS.c.labels != "")
            .where(VERSIONS.c.labels != newest.limit(1).scalar_subquery())
            .order_by(VERSIONS.c.number),
        )
        with self._database.read() as connection:
            found = (connection.execute(query.limit(limit)).scalars() for query in queries)
            return Reclaimable(*(list(dict.fromkeys(keys)) for keys in found))

    def reclaimed(self, pipeline: str, gone: Reclaimable) -> None:
        """Notes that objects were deleted."""
        with self._database.unit_of_work() as work:
            run = work.connection.execute
            run(
                SHARDS.update()
                .where(SHARDS.c.pipeline == pipeline, SHARDS.c.key.in_(gone.shards))
                .values(reclaimed=True)
            )
            run(
                PARTS.update()
                .where(PARTS.c.pipeline == pipeline, PARTS.c.state.in_(gone.states))
                .values(state="")
            )
            run(
                VERSIONS.update()
                .where(VERSIONS.c.pipeline == pipeline, VERSIONS.c.labels.in_(gone.labels))
                .values(labels="")
            )


def _shared(pipeline: str) -> sa.Select[tuple[str]]:
    """Objects that several shards were put together in."""
    return (
        sa.select(SHARDS.c.key)
        .where(in_no_version(pipeline))
        .group_by(SHARDS.c.key)
        .having(sa.func.count() > 1)
    )
