"""The writer's positions, and what became of the messages before them; they move together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime

import orjson
import sqlalchemy as sa

from everloop_ingest.adapters.store.letters import LETTER_FILES
from everloop_ingest.adapters.store.shards import SHARDS
from everloop_ingest.adapters.store.sql import METADATA
from everloop_ingest.domain import Batch, Books, OutboxMessage, Partition, Shard
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.events import Event

__all__ = ["Settlements"]

POSITIONS = sa.Table(
    "positions",
    METADATA,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger),
    sa.Column("lost", sa.BigInteger),
)
REJECTIONS = sa.Table(
    "rejections",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("reason", sa.String, primary_key=True),
    sa.Column("count", sa.BigInteger),
)


class Settlements:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def claim(self, partition: Partition, beginning: int) -> int:
        """The writer's position in a partition; `beginning` becomes it where there is none yet."""
        row = {
            "topic": partition.topic,
            "partition": partition.number,
            "next_offset": beginning,
            "lost": 0,
        }
        with self._database.unit_of_work() as work:
            work.insert_once(POSITIONS, row)
            found = sa.select(POSITIONS.c.next_offset).where(_is(partition))
            return int(work.connection.execute(found).scalar_one())

    def positions(self, topic: str) -> dict[int, int]:
        """The writer's position in each partition of a topic that it has claimed."""
        columns = sa.select(POSITIONS.c.partition, POSITIONS.c.next_offset)
        with self._database.read() as connection:
            rows = connection.execute(columns.where(POSITIONS.c.topic == topic))
            return {row.partition: row.next_offset for row in rows}

    def skip(self, partition: Partition, start: int, end: int) -> bool:
        """Moves the position over offsets that the topic no longer holds and counts them; False if it was elsewhere."""
        with self._database.unit_of_work() as work:
            if not _move(work, partition, start, end):
                return False
            lost = POSITIONS.c.lost + (end - start)
            work.connection.execute(POSITIONS.update().where(_is(partition)).values(lost=lost))
            return True

    def lost(self, topic: str) -> int:
        """Offsets of a topic that were skipped."""
        total = sa.select(sa.func.coalesce(sa.func.sum(POSITIONS.c.lost), 0))
        with self._database.read() as connection:
            found = connection.execute(total.where(POSITIONS.c.topic == topic))
            return int(found.scalar_one())

    def settle(
        self,
        batch: Batch,
        shard: Shard | None,
        dead_letters: Iterable[OutboxMessage],
        events: Iterable[Event],
        letters_key: str = "",
    ) -> bool:
        """Commits a batch: position, books, dead letters, the object that keeps them, and events together.

        Returns False and changes nothing where the position is not at the batch's start: another writer has
        taken over the partition, or this batch has been settled already.
        """
        with self._database.unit_of_work() as work:
            if not _move(work, batch.partition, batch.start, batch.end):
                return False
            if shard is not None:
                _record(work, shard)
                if letters_key:
                    _record_letters(work, shard, letters_key)
            for letter in dead_letters:
                work.send(*letter)
            for event in events:
                work.publish(event)
            return True

    def backlog(self, limit: int) -> bool:
        """Whether at least `limit` messages wait in the outbox."""
        some = sa.select(sa.literal(1)).select_from(sa.table("outbox")).limit(limit).subquery()
        with self._database.read() as connection:
            waiting = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
            return int(waiting) >= limit

    def books(self, pipeline: str) -> Books:
        """What became of the messages of a pipeline."""
        sums = [
            sa.func.coalesce(sa.func.sum(SHARDS.c[name]), 0) for name in ("accepted", "actuals")
        ]
        totals = sa.select(sa.literal(""), *sums).where(SHARDS.c.pipeline == pipeline)
        reasons = sa.select(REJECTIONS.c.reason, REJECTIONS.c["count"], sa.literal(0))
        # One statement: all of it is of the same moment.
        query = totals.union_all(reasons.where(REJECTIONS.c.pipeline == pipeline))
        with self._database.read() as connection:
            found = {
                reason: (int(count), int(more)) for reason, count, more in connection.execute(query)
            }
        accepted, actuals = found.pop("")
        return Books(accepted, actuals, {reason: count for reason, (count, _) in found.items()})


def _is(partition: Partition) -> sa.ColumnElement[bool]:
    return (POSITIONS.c.topic == partition.topic) & (POSITIONS.c.partition == partition.number)


def _move(work: UnitOfWork, partition: Partition, start: int, end: int) -> bool:
    here = _is(partition) & (POSITIONS.c.next_offset == start)
    return (
        work.connection.execute(POSITIONS.update().where(here).values(next_offset=end)).rowcount
        == 1
    )


def _record(work: UnitOfWork, shard: Shard) -> None:
    row = asdict(shard)
    del row["partition"]
    row |= {
        "topic": shard.partition.topic,
        "partition": shard.partition.number,
        "rejected": sum(shard.rejected.values()),
        "create_time": datetime.now(UTC),
    }
    work.connection.execute(SHARDS.insert().values(row))
    for reason, count in shard.rejected.items():
        insert = work.insert(REJECTIONS).values(pipeline=shard.pipeline, reason=reason, count=count)
        total = REJECTIONS.c["count"] + insert.excluded["count"]
        work.connection.execute(
            insert.on_conflict_do_update(
                index_elements=["pipeline", "reason"], set_={"count": total}
            )
        )


def _record_letters(work: UnitOfWork, shard: Shard, key: str) -> None:
    row = {
        "pipeline": shard.pipeline,
        "topic": shard.partition.topic,
        "partition": shard.partition.number,
        "first_offset": shard.first_offset,
        "last_offset": shard.last_offset,
        "key": key,
        "reasons": orjson.dumps(shard.rejected).decode(),
        "create_time": datetime.now(UTC),
    }
    work.connection.execute(LETTER_FILES.insert().values(row))
