"""Where dead letters are kept, and which of them were put on their topic again; the settling transaction notes them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import orjson
import sqlalchemy as sa

from everloop_ingest.adapters.store.sql import ID, METADATA, Utc
from everloop_ingest.domain import LetterFile, OutboxMessage, Partition, Replay, Replayed
from everloop_runtime.database import Database, UnitOfWork

__all__ = ["LETTER_FILES", "REPLAY_REQUESTS", "LetterStore"]

LETTER_FILES = sa.Table(
    "dead_letter_files",
    METADATA,
    sa.Column("id", ID, primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("topic", sa.String),
    sa.Column("partition", sa.Integer),
    sa.Column("first_offset", sa.BigInteger),
    sa.Column("last_offset", sa.BigInteger),
    sa.Column("key", sa.Text),
    sa.Column("reasons", sa.Text),
    sa.Column("create_time", Utc),
)
REPLAYS = sa.Table(
    "replays",
    METADATA,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("request_id", sa.String),
    sa.Column("create_time", Utc),
)
REPLAY_REQUESTS = sa.Table(
    "replay_requests",
    METADATA,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("replayed", sa.BigInteger),
    sa.Column("skipped", sa.BigInteger),
    sa.Column("next_page_token", sa.String),
    sa.Column("create_time", Utc),
)


class LetterStore:
    """Reads and writes the tables of dead letters; each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def files(
        self,
        pipeline: str,
        reason: str,
        start: datetime | None,
        end: datetime | None,
        up_to: int | None,
        limit: int,
    ) -> list[LetterFile]:
        """Objects of a pipeline's dead letters, newest first.

        Args:
            pipeline: its name.
            reason: one that is in it; any where empty.
            start: rejected then or later.
            end: rejected before.
            up_to: the newest one that is wanted, by id; the newest of all where None.
            limit: at most so many.
        """
        files = LETTER_FILES.c
        query = sa.select(LETTER_FILES).where(files.pipeline == pipeline)
        if reason:
            query = query.where(files.reasons.contains(f'"{reason}"', autoescape=True))
        if start is not None:
            query = query.where(files.create_time >= start)
        if end is not None:
            query = query.where(files.create_time < end)
        if up_to is not None:
            query = query.where(files.id <= up_to)
        return self._files(query.order_by(files.id.desc()).limit(limit))

    def file_of(self, partition: Partition, offset: int) -> LetterFile | None:
        """The object that would hold the dead letter of a message."""
        query = sa.select(LETTER_FILES).where(
            LETTER_FILES.c.topic == partition.topic,
            LETTER_FILES.c.partition == partition.number,
            LETTER_FILES.c.first_offset <= offset,
            LETTER_FILES.c.last_offset >= offset,
        )
        found = self._files(query.order_by(LETTER_FILES.c.first_offset.desc()).limit(1))
        return found[0] if found else None

    def replayed(self, partition: Partition, offsets: Sequence[int]) -> dict[int, Replay]:
        """Which of a partition's dead letters were replayed."""
        query = sa.select(REPLAYS).where(_of(partition), REPLAYS.c.offset.in_(offsets))
        with self._database.read() as connection:
            return {
                row.offset: Replay(row.request_id, row.create_time)
                for row in connection.execute(query)
            }

    def answer(self, pipeline: str, request_id: str) -> Replayed | None:
        """What a replay request was answered."""
        with self._database.read() as connection:
            return _answer(connection, pipeline, request_id)

    def replay(
        self,
        pipeline: str,
        request_id: str,
        answer: Replayed,
        messages: Sequence[tuple[Partition, int, OutboxMessage]],
        now: datetime,
    ) -> Replayed:
        """Puts dead letters on their way and remembers the answer, in one transaction.

        Args:
            pipeline: its name.
            request_id: of the request.
            answer: what it is answered if every message goes.
            messages: partition and offset of each dead letter, and the message; what was replayed before is skipped.
            now: the time of the replay.

        Returns:
            The first answer that the request got.
        """
        with self._database.unit_of_work() as work:
            known = _answer(work.connection, pipeline, request_id)
            if known is not None:
                return known
            sent = sum(
                _send_once(work, partition, offset, message, request_id, now)
                for partition, offset, message in messages
            )
            late = len(messages) - sent
            given = Replayed(answer.digest, sent, answer.skipped + late, answer.next_page_token)
            row = {
                "pipeline": pipeline,
                "request_id": request_id,
                "digest": given.digest,
                "replayed": given.replayed,
                "skipped": given.skipped,
                "next_page_token": given.next_page_token,
                "create_time": now,
            }
            work.connection.execute(REPLAY_REQUESTS.insert().values(row))
            return given

    def expired(self, before: datetime, limit: int) -> list[LetterFile]:
        """The oldest objects from before a moment."""
        query = sa.select(LETTER_FILES).where(LETTER_FILES.c.create_time < before)
        return self._files(query.order_by(LETTER_FILES.c.create_time).limit(limit))

    def forget(self, files: Sequence[LetterFile]) -> None:
        """Forgets objects that are gone, and what of them was replayed."""
        with self._database.unit_of_work() as work:
            for file in files:
                row = work.connection.execute(
                    sa.select(LETTER_FILES.c.first_offset, LETTER_FILES.c.last_offset).where(
                        LETTER_FILES.c.id == file.id
                    )
                ).first()
                if row is None:
                    continue
                inside = REPLAYS.c.offset.between(row.first_offset, row.last_offset)
                work.connection.execute(REPLAYS.delete().where(_of(file.partition), inside))
                work.connection.execute(LETTER_FILES.delete().where(LETTER_FILES.c.id == file.id))

    def _files(self, query: sa.Select[tuple[object, ...]]) -> list[LetterFile]:
        with self._database.read() as connection:
            return [
                LetterFile(
                    row.id,
                    Partition(row.topic, row.partition),
                    row.key,
                    orjson.loads(row.reasons),
                    row.create_time,
                )
                for row in connection.execute(query)
            ]


def _of(partition: Partition) -> sa.ColumnElement[bool]:
    return (REPLAYS.c.topic == partition.topic) & (REPLAYS.c.partition == partition.number)


def _send_once(
    work: UnitOfWork,
    partition: Partition,
    offset: int,
    message: OutboxMessage,
    request_id: str,
    now: datetime,
) -> bool:
    row = {
        "topic": partition.topic,
        "partition": partition.number,
        "offset": offset,
        "request_id": request_id,
        "create_time": now,
    }
    if not work.insert_once(REPLAYS, row):
        return False
    work.send(*message)
    return True


def _answer(connection: sa.Connection, pipeline: str, request_id: str) -> Replayed | None:
    chosen = (REPLAY_REQUESTS.c.pipeline == pipeline) & (REPLAY_REQUESTS.c.request_id == request_id)
    row = connection.execute(sa.select(REPLAY_REQUESTS).where(chosen)).first()
    return Replayed(row.digest, row.replayed, row.skipped, row.next_page_token) if row else None
