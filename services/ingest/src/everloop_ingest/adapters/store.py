"""The ingest database: positions of the writer, shards and their books, dataset versions, requests, schemas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from datetime import UTC, datetime

import orjson
import sqlalchemy as sa

from everloop_ingest.checks import Profile
from everloop_ingest.domain import (
    Audit,
    Batch,
    Books,
    ObjectFile,
    Part,
    Partition,
    Pushed,
    Reason,
    Reclaimable,
    Rejection,
    Rows,
    Shard,
    State,
    Unversioned,
    Version,
)
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event

__all__ = ["Change", "OutboxMessage", "Store", "letter_files", "replay_requests", "replays"]

metadata = sa.MetaData()


class _Utc(sa.types.TypeDecorator[datetime]):
    """An instant, kept as UTC without a zone: SQLite has none to keep."""

    impl = sa.DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.astimezone(UTC).replace(tzinfo=None) if value else None

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        return value.replace(tzinfo=UTC) if value else None


positions = sa.Table(
    "positions",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger),
)
shards = sa.Table(
    "shards",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("topic", sa.String),
    sa.Column("partition", sa.Integer),
    sa.Column("first_offset", sa.BigInteger),
    sa.Column("last_offset", sa.BigInteger),
    sa.Column("key", sa.Text),
    sa.Column("accepted", sa.BigInteger),
    sa.Column("actuals", sa.BigInteger),
    sa.Column("rejected", sa.BigInteger),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("first_event_time", _Utc),
    sa.Column("last_event_time", _Utc),
    sa.Column("create_time", _Utc),
    sa.Column("first_version", sa.BigInteger),
    sa.Column("lost", sa.Boolean),
    sa.Column("merged", sa.Boolean),
    sa.Column("reclaimed", sa.Boolean),
)
rejections = sa.Table(
    "rejections",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("reason", sa.String, primary_key=True),
    sa.Column("count", sa.BigInteger),
)
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("state", sa.String),
    sa.Column("cause_id", sa.String),
    sa.Column("create_time", _Utc),
    sa.Column("shards", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("labelled_rows", sa.BigInteger),
    sa.Column("first_event_time", _Utc),
    sa.Column("last_event_time", _Utc),
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
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("action", sa.String),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("create_time", _Utc),
)
parts = sa.Table(
    "parts",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("md5", sa.String),
    sa.Column("size_bytes", sa.BigInteger),
    sa.Column("rows", sa.BigInteger),
    sa.Column("labelled_rows", sa.BigInteger),
    sa.Column("first_event_time", _Utc),
    sa.Column("first_record_id", sa.Text),
    sa.Column("last_event_time", _Utc),
    sa.Column("state", sa.Text),
    sa.Column("columns", sa.String),
    sa.Column("first_version", sa.BigInteger),
    sa.Column("until_version", sa.BigInteger),
)
cut_requests = sa.Table(
    "cut_requests",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("create_time", _Utc),
)
push_requests = sa.Table(
    "push_requests",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("rejections", sa.LargeBinary),
    sa.Column("create_time", _Utc),
)
schemas = sa.Table(
    "schemas",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("document", sa.Text),
    sa.Column("create_time", _Utc),
)

erasures = sa.Table(
    "erasures",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("version", sa.BigInteger),
    sa.Column("record_ids", sa.Text),
    sa.Column("actor", sa.Text),
    sa.Column("reason", sa.Text),
    sa.Column("create_time", _Utc),
)

letter_files = sa.Table(
    "dead_letter_files",
    metadata,
    sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
    sa.Column("pipeline", sa.String),
    sa.Column("topic", sa.String),
    sa.Column("partition", sa.Integer),
    sa.Column("first_offset", sa.BigInteger),
    sa.Column("last_offset", sa.BigInteger),
    sa.Column("key", sa.Text),
    sa.Column("reasons", sa.Text),
    sa.Column("create_time", _Utc),
)
replays = sa.Table(
    "replays",
    metadata,
    sa.Column("topic", sa.String, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("offset", sa.BigInteger, primary_key=True),
    sa.Column("request_id", sa.String),
    sa.Column("create_time", _Utc),
)
replay_requests = sa.Table(
    "replay_requests",
    metadata,
    sa.Column("pipeline", sa.String, primary_key=True),
    sa.Column("request_id", sa.String, primary_key=True),
    sa.Column("digest", sa.LargeBinary),
    sa.Column("replayed", sa.BigInteger),
    sa.Column("skipped", sa.BigInteger),
    sa.Column("next_page_token", sa.String),
    sa.Column("create_time", _Utc),
)

OutboxMessage = tuple[str, bytes | None, bytes, list[tuple[str, bytes]]]
"""Topic, key, value and headers of a message for the outbox."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a version changes.

    Attributes:
        added: parts that no version had before.
        removed: parts of the version before that it has no more.
        labels: path of the object with the labels that wait, or ''.
        profile: of all records where the version is announced; of its own where it is in quarantine.
    """

    added: Sequence[Part]
    removed: Sequence[Part]
    labels: str
    profile: Profile


class Store:
    """Reads and writes the tables above; each method is one transaction or one statement."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def claim(self, partition: Partition, beginning: int) -> int:
        """The writer's position in a partition; `beginning` becomes it where there is none yet."""
        row = {"topic": partition.topic, "partition": partition.number, "next_offset": beginning}
        with self._database.unit_of_work() as work:
            work.insert_once(positions, row)
            found = sa.select(positions.c.next_offset).where(_is(partition))
            return int(work.connection.execute(found).scalar_one())

    def positions(self, topic: str) -> dict[int, int]:
        """The writer's position in each partition of a topic that it has claimed."""
        columns = sa.select(positions.c.partition, positions.c.next_offset)
        with self._database.read() as connection:
            rows = connection.execute(columns.where(positions.c.topic == topic))
            return {row.partition: row.next_offset for row in rows}

    def skip(self, partition: Partition, start: int, end: int) -> bool:
        """Moves the position over offsets that the topic no longer holds; False if it was elsewhere."""
        with self._database.unit_of_work() as work:
            return _move(work, partition, start, end)

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
            sa.func.coalesce(sa.func.sum(shards.c[name]), 0)
            for name in ("accepted", "rejected", "actuals")
        ]
        reasons = sa.select(rejections.c.reason, rejections.c["count"])
        # One transaction: the sums and the reasons are of the same moment.
        with self._database.read() as connection:
            row = connection.execute(sa.select(*sums).where(shards.c.pipeline == pipeline)).one()
            by_reason = connection.execute(reasons.where(rejections.c.pipeline == pipeline))
            accepted, rejected, actuals = map(int, row)
            return Books(accepted, rejected, actuals, {item[0]: int(item[1]) for item in by_reason})

    def unversioned(self, pipeline: str) -> Unversioned:
        """What is stored and in no version yet."""
        columns = (
            sa.func.coalesce(sa.func.sum(shards.c.accepted - shards.c.actuals), 0),
            sa.func.min(shards.c.create_time),
        )
        with self._database.read() as connection:
            row = connection.execute(sa.select(*columns).where(_new(pipeline))).one()
            return Unversioned(int(row[0]), row[1])

    def requested(self, pipeline: str, request_id: str) -> Version | None:
        """The version that a request has got already."""
        with self._database.read() as connection:
            return _requested(connection, pipeline, request_id)

    def begin_version(self, pipeline: str, request_id: str, now: datetime) -> Version | None:
        """The version of a request: the one it has, the newest where nothing is new, else a new one, CUTTING.

        A new version takes every shard that is in none yet, and every erasure that was asked for; a version that failed
        is no answer. None where there is no record at all.
        """
        with self._database.unit_of_work() as work:
            known = _requested(work.connection, pipeline, request_id)
            if known is not None and known.state is not State.FAILED:
                return known
            newest = _newest(work.connection, pipeline)
            number = newest.number + 1 if newest else 1
            shard_count = _claim(work, pipeline, number)
            if shard_count is None:
                answer = _newest(work.connection, pipeline, versions.c.state != State.FAILED)
            else:
                answer = Version(pipeline, number, State.CUTTING, request_id, now, shard_count)
                work.connection.execute(versions.insert().values(_columns(answer)))
            if answer is not None:
                key = {"pipeline": pipeline, "request_id": request_id}
                row = {"version": answer.number, "create_time": now}
                insert = work.insert(cut_requests).values(key | row)
                work.connection.execute(
                    insert.on_conflict_do_update(index_elements=list(key), set_=row)
                )
            return answer

    def shards_of(self, version: Version) -> list[str]:
        """Objects of a version whose rows are in no part yet, in the order in which they were stored."""
        chosen = _unmerged(version)
        with self._database.read() as connection:
            keys = connection.execute(
                sa.select(shards.c.key).where(chosen).order_by(shards.c.id)
            ).scalars()
            return list(dict.fromkeys(keys))  # shards that were put together share their object

    def small_shards(self, pipeline: str, rows: int, limit: int) -> list[tuple[str, int]]:
        """Objects of at most `rows` rows that no version has yet, with their rows; the oldest `limit`."""
        small = sa.select(shards.c.key, shards.c.accepted).where(
            _new(pipeline), shards.c.accepted <= rows, shards.c.key.not_in(_shared(pipeline))
        )
        with self._database.read() as connection:
            found = connection.execute(small.order_by(shards.c.id).limit(limit))
            return [(row.key, row.accepted) for row in found]

    def put_together(self, pipeline: str, keys: Sequence[str], key: str) -> bool:
        """Says that the rows of objects are in one object now; False where a version has taken one of them."""
        all_of_them = _new(pipeline) & shards.c.key.in_(keys)
        with self._database.unit_of_work() as work:
            free = work.connection.execute(
                sa.select(shards.c.id).where(all_of_them).with_for_update()
            ).all()
            if len(free) != len(keys):
                return False
            work.connection.execute(shards.update().where(all_of_them).values(key=key))
            return True

    def reclaimable(self, pipeline: str, before: datetime, limit: int) -> Reclaimable:
        """Objects that no later version needs, replaced before a moment; of each kind the oldest `limit`."""
        old = sa.select(versions.c.number).where(
            versions.c.pipeline == pipeline, versions.c.create_time < before
        )
        held = sa.select(parts.c.state).where(
            parts.c.pipeline == pipeline, parts.c.until_version.is_(None)
        )
        done = versions.c.state.not_in([State.CUTTING, State.FAILED])
        mine = (versions.c.pipeline == pipeline) & done
        newest = sa.select(versions.c.labels).where(mine).order_by(versions.c.number.desc())
        queries = (
            sa.select(shards.c.key)
            .where(
                _stored(pipeline),
                shards.c.merged == sa.true(),
                shards.c.reclaimed == sa.false(),
                shards.c.first_version.in_(old),
            )
            .order_by(shards.c.id),
            sa.select(parts.c.state)
            .where(parts.c.pipeline == pipeline, parts.c.until_version.in_(old))
            .where(parts.c.state != "", parts.c.state.not_in(held))
            .order_by(parts.c.id),
            sa.select(versions.c.labels)
            .where(mine, versions.c.number.in_(old), versions.c.labels != "")
            .where(versions.c.labels != newest.limit(1).scalar_subquery())
            .order_by(versions.c.number),
        )
        with self._database.read() as connection:
            found = (connection.execute(query.limit(limit)).scalars() for query in queries)
            return Reclaimable(*(list(dict.fromkeys(keys)) for keys in found))

    def reclaimed(self, pipeline: str, gone: Reclaimable) -> None:
        """Notes that objects were deleted."""
        with self._database.unit_of_work() as work:
            run = work.connection.execute
            run(
                shards.update()
                .where(shards.c.pipeline == pipeline, shards.c.key.in_(gone.shards))
                .values(reclaimed=True)
            )
            run(
                parts.update()
                .where(parts.c.pipeline == pipeline, parts.c.state.in_(gone.states))
                .values(state="")
            )
            run(
                versions.update()
                .where(versions.c.pipeline == pipeline, versions.c.labels.in_(gone.labels))
                .values(labels="")
            )

    def base(self, pipeline: str) -> tuple[list[Part], str]:
        """What the next version starts from: the newest parts, in order, and the object of labels that wait or ''."""
        done = versions.c.state.not_in([State.CUTTING, State.FAILED])
        labels = sa.select(versions.c.labels).where(versions.c.pipeline == pipeline, done)
        newest = parts.c.until_version.is_(None)
        with self._database.read() as connection:
            found = connection.execute(labels.order_by(versions.c.number.desc()).limit(1)).scalar()
            return _parts(connection, pipeline, newest), found or ""

    def parts(self, version: Version) -> list[Part]:
        """Parts of a version, in order; none where it is not complete, or from before there were parts."""
        if not version.in_parts:
            return []
        until = parts.c.until_version
        there = (parts.c.first_version <= version.number) & (
            until.is_(None) | (until > version.number)
        )
        with self._database.read() as connection:
            return _parts(connection, version.pipeline, there)

    def profiles(self, pipeline: str) -> tuple[Profile, Profile]:
        """Records up to the last version that was announced, and those that came after it."""
        done = versions.c.state.in_([State.AVAILABLE, State.QUARANTINED])
        query = sa.select(versions.c.state, versions.c.profile)
        query = query.where(versions.c.pipeline == pipeline, done)
        after = Profile.decode("")
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(versions.c.number.desc())):
                if row.state == State.AVAILABLE:
                    return Profile.decode(row.profile), after
                after = after.plus(Profile.decode(row.profile))
        return Profile.decode(""), after

    def complete(self, version: Version, change: Change, event: Event | None) -> None:
        """Makes a version available and announces it, once; without an event it is in quarantine."""
        row = (versions.c.pipeline == version.pipeline) & (versions.c.number == version.number)
        cutting = versions.c.state == State.CUTTING
        with self._database.unit_of_work() as work:
            update = versions.update().where(row & cutting)
            profile = change.profile.encode()
            values = _columns(version) | {"labels": change.labels, "profile": profile}
            if work.connection.execute(update.values(values)).rowcount != 1:
                return
            _replace_parts(work, version, change.added, change.removed)
            work.connection.execute(shards.update().where(_unmerged(version)).values(merged=True))
            _note_erasures(work, version)
            if event is not None:
                _forget_profiles(work, version)
                work.publish(event)

    def release(self, version: Version, entry: Audit, event: Event) -> None:
        """Takes a version out of quarantine, announces it and writes the audit entry; a repeat changes nothing.

        Raises:
            EverloopError: kind precondition, reasons NOT_QUARANTINED and SUPERSEDED.
        """
        row = (versions.c.pipeline == version.pipeline) & (versions.c.number == version.number)
        with self._database.unit_of_work() as work:
            if _audited(work.connection, entry.pipeline, entry.request_id):
                return
            newest = _newest(work.connection, version.pipeline, versions.c.state == State.AVAILABLE)
            if newest is not None and newest.number > version.number:
                raise EverloopError(
                    Kind.PRECONDITION,
                    "SUPERSEDED",
                    f"v{newest.number} holds all of v{version.number} and was announced",
                )
            held = row & (versions.c.state == State.QUARANTINED)
            found = work.connection.execute(sa.select(versions.c.profile).where(held)).scalar()
            if found is None:
                raise EverloopError(
                    Kind.PRECONDITION,
                    "NOT_QUARANTINED",
                    f"{version.pipeline} v{version.number} is not in quarantine",
                )
            profile = _profile_of(work, version.pipeline, version.number).encode()
            values = {"state": State.AVAILABLE, "error": "", "profile": profile}
            work.connection.execute(versions.update().where(row).values(values))
            _forget_profiles(work, version)
            work.connection.execute(audit.insert().values(asdict(entry)))
            work.publish(event)

    def ask_erasure(self, entry: Audit, record_ids: Sequence[str]) -> None:
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
            work.insert_once(erasures, row)

    def erasure_asked(self, pipeline: str, request_id: str) -> bool:
        """Whether a request to erase records is known."""
        known = (erasures.c.pipeline == pipeline) & (erasures.c.request_id == request_id)
        with self._database.read() as connection:
            return (
                connection.execute(sa.select(erasures.c.pipeline).where(known)).first() is not None
            )

    def audited(self, pipeline: str, request_id: str) -> bool:
        """Whether a request has its entry in the audit trail."""
        with self._database.read() as connection:
            return _audited(connection, pipeline, request_id)

    def erasures_wait(self, pipeline: str) -> bool:
        """Whether erasures were asked for that no version has taken."""
        with self._database.read() as connection:
            return bool(connection.execute(_waiting_erasures(pipeline)).scalar())

    def erased(self, version: Version) -> list[str]:
        """Record ids that a version being cut is to forget."""
        query = sa.select(erasures.c.record_ids).where(_erasures_of(version))
        with self._database.read() as connection:
            found = [orjson.loads(text) for text in connection.execute(query).scalars()]
            return sorted({record_id for ids in found for record_id in ids})

    def audit(self, pipeline: str, number: int) -> list[Audit]:
        """What people did to a version, oldest first."""
        entries = sa.select(audit).where(audit.c.pipeline == pipeline, audit.c.version == number)
        with self._database.read() as connection:
            found = connection.execute(entries.order_by(audit.c.create_time))
            return [Audit(**row._mapping) for row in found]

    def fail(self, version: Version, lost: Sequence[str]) -> None:
        """Ends a version, `error` says why, whose objects `lost` are not there any more.

        Its other shards are new again, and so would be a lost one that somebody brings back and marks as not lost.
        """
        row = (versions.c.pipeline == version.pipeline) & (versions.c.number == version.number)
        update = versions.update().where(row & (versions.c.state == State.CUTTING))
        stored = _stored(version.pipeline)
        with self._database.unit_of_work() as work:
            failed = update.values(state=version.state, error=version.error)
            if work.connection.execute(failed).rowcount != 1:
                return
            mark = shards.update().where(stored & (shards.c.key == sa.bindparam("gone")))
            work.connection.execute(
                mark.values(lost=True, first_version=None), [{"gone": key} for key in lost]
            )
            waits = erasures.update().where(_erasures_of(version)).values(version=None)
            work.connection.execute(waits)
            release = shards.update().where(stored & (shards.c.first_version == version.number))
            work.connection.execute(release.values(first_version=None))

    def cutting(self, pipeline: str) -> list[Version]:
        """Versions of a pipeline that a crash or an outage may have left behind, oldest first."""
        query = sa.select(versions).where(
            versions.c.pipeline == pipeline, versions.c.state == State.CUTTING
        )
        return self._versions(query.order_by(versions.c.number))

    def version(self, pipeline: str, number: int) -> Version | None:
        """One version; 0 means the newest that is available."""
        one = versions.c.number == number
        chosen = one if number else versions.c.state == State.AVAILABLE
        query = sa.select(versions).where(versions.c.pipeline == pipeline, chosen)
        found = self._versions(query.order_by(versions.c.number.desc()).limit(1))
        return found[0] if found else None

    def versions(self, pipeline: str, before: int | None, limit: int) -> list[Version]:
        """Versions of a pipeline, newest first, at most `limit`, those below number `before`."""
        query = sa.select(versions).where(versions.c.pipeline == pipeline)
        if before is not None:
            query = query.where(versions.c.number < before)
        return self._versions(query.order_by(versions.c.number.desc()).limit(limit))

    def pushed(self, pipeline: str, request_id: str) -> Pushed | None:
        """What a push request was answered."""
        with self._database.read() as connection:
            return _pushed(connection, pipeline, request_id)

    def answer_push(self, pipeline: str, request_id: str, answer: Pushed, now: datetime) -> Pushed:
        """Remembers the answer of a push request; returns the first one that was."""
        row = {
            "pipeline": pipeline,
            "request_id": request_id,
            "digest": answer.digest,
            "rejections": orjson.dumps([astuple(item) for item in answer.rejections]),
            "create_time": now,
        }
        with self._database.unit_of_work() as work:
            work.insert_once(push_requests, row)
            return _pushed(work.connection, pipeline, request_id) or answer

    def schemas(self, pipeline: str) -> dict[int, str]:
        """The schemas that a pipeline was served with, JSON by number."""
        query = sa.select(schemas.c.version, schemas.c.document).where(
            schemas.c.pipeline == pipeline
        )
        with self._database.read() as connection:
            return {row.version: row.document for row in connection.execute(query)}

    def keep_schema(self, pipeline: str, version: int, document: str, now: datetime) -> None:
        """Remembers a schema, in the place of one with its number."""
        key = {"pipeline": pipeline, "version": version}
        row = {"document": document, "create_time": now}
        with self._database.unit_of_work() as work:
            insert = work.insert(schemas).values(key | row)
            work.connection.execute(
                insert.on_conflict_do_update(
                    index_elements=list(key), set_={"document": insert.excluded.document}
                )
            )

    def forget_requests(self, before: datetime, limit: int) -> int:
        """Deletes requests from before a moment, the oldest `limit` of each kind; returns how many it were."""
        gone = 0
        for table in (cut_requests, push_requests, replay_requests):
            key = table.c.pipeline, table.c.request_id
            old = sa.select(*key).where(table.c.create_time < before)
            oldest = old.order_by(table.c.create_time).limit(limit)
            with self._database.unit_of_work() as work:
                delete = table.delete().where(sa.tuple_(*key).in_(oldest))
                gone += work.connection.execute(delete).rowcount
        return gone

    def _versions(self, query: sa.Select[tuple[object, ...]]) -> list[Version]:
        with self._database.read() as connection:
            return [_version(row) for row in connection.execute(query)]


def _is(partition: Partition) -> sa.ColumnElement[bool]:
    return (positions.c.topic == partition.topic) & (positions.c.partition == partition.number)


def _move(work: UnitOfWork, partition: Partition, start: int, end: int) -> bool:
    here = _is(partition) & (positions.c.next_offset == start)
    return (
        work.connection.execute(positions.update().where(here).values(next_offset=end)).rowcount
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
    work.connection.execute(shards.insert().values(row))
    for reason, count in shard.rejected.items():
        insert = work.insert(rejections).values(pipeline=shard.pipeline, reason=reason, count=count)
        total = rejections.c["count"] + insert.excluded["count"]
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
    work.connection.execute(letter_files.insert().values(row))


def _stored(pipeline: str) -> sa.ColumnElement[bool]:
    """Shards whose object is there."""
    return (shards.c.pipeline == pipeline) & (shards.c.key != "") & shards.c.lost.is_(False)


def _forget_profiles(work: UnitOfWork, version: Version) -> None:
    """Drops the profiles that are in that of a version which is announced."""
    older = (versions.c.pipeline == version.pipeline) & (versions.c.number < version.number)
    work.connection.execute(versions.update().where(older).values(profile=""))


def _profile_of(work: UnitOfWork, pipeline: str, number: int) -> Profile:
    """Records up to the last version that was announced, and of those in quarantine behind it up to `number`."""
    query = sa.select(versions.c.number, versions.c.state, versions.c.profile).where(
        versions.c.pipeline == pipeline,
        versions.c.state.in_([State.AVAILABLE, State.QUARANTINED]),
    )
    total = Profile.decode("")
    for row in work.connection.execute(query.order_by(versions.c.number.desc())):
        if row.state == State.AVAILABLE:
            return Profile.decode(row.profile).plus(total)
        if row.number <= number:
            total = Profile.decode(row.profile).plus(total)
    return total


def _audited(connection: sa.Connection, pipeline: str, request_id: str) -> bool:
    known = (audit.c.pipeline == pipeline) & (audit.c.request_id == request_id)
    return connection.execute(sa.select(audit.c.version).where(known)).first() is not None


def _unmerged(version: Version) -> sa.ColumnElement[bool]:
    """Shards of a version, and of those before it, whose rows are in no part."""
    among = shards.c.first_version <= version.number
    return _stored(version.pipeline) & among & shards.c.merged.is_(False)


def _replace_parts(
    work: UnitOfWork, version: Version, added: Sequence[Part], removed: Sequence[Part]
) -> None:
    gone = (
        (parts.c.pipeline == version.pipeline)
        & (parts.c.state == sa.bindparam("gone"))
        & parts.c.until_version.is_(None)
    )
    if removed:
        work.connection.execute(
            parts.update().where(gone).values(until_version=version.number),
            [{"gone": part.state} for part in removed],
        )
    if added:
        place = {"pipeline": version.pipeline, "first_version": version.number}
        work.connection.execute(parts.insert(), [asdict(part) | place for part in added])


def _parts(connection: sa.Connection, pipeline: str, which: sa.ColumnElement[bool]) -> list[Part]:
    columns = [parts.c[item.name] for item in fields(Part)]
    query = sa.select(*columns).where(parts.c.pipeline == pipeline, which)
    found = [Part(*row) for row in connection.execute(query)]
    # Not by the database: its order of texts depends on its locale.
    return sorted(found, key=lambda part: (part.first_event_time, part.first_record_id))


def _shared(pipeline: str) -> sa.Select[tuple[str]]:
    """Objects that several shards were put together in."""
    return (
        sa.select(shards.c.key)
        .where(_new(pipeline))
        .group_by(shards.c.key)
        .having(sa.func.count() > 1)
    )


def _new(pipeline: str) -> sa.ColumnElement[bool]:
    return _stored(pipeline) & shards.c.first_version.is_(None)


def _erasures_of(version: Version) -> sa.ColumnElement[bool]:
    return (erasures.c.pipeline == version.pipeline) & (erasures.c.version == version.number)


def _waiting_erasures(pipeline: str) -> sa.Select[int]:
    waiting = (erasures.c.pipeline == pipeline) & erasures.c.version.is_(None)
    return sa.select(sa.func.count()).select_from(erasures).where(waiting)


def _note_erasures(work: UnitOfWork, version: Version) -> None:
    """Writes the audit entries of what a version has forgotten, and forgets the record ids here, too."""
    query = sa.select(erasures).where(_erasures_of(version))
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
        work.insert_once(audit, asdict(entry))
        # The first row of an earlier part may be one of them; its time still says where the part stands.
        mine = parts.c.pipeline == version.pipeline
        first = parts.c.first_record_id.in_(orjson.loads(row.record_ids))
        work.connection.execute(parts.update().where(mine, first).values(first_record_id=""))
    forget = erasures.update().where(_erasures_of(version)).values(record_ids="[]")
    work.connection.execute(forget)


def _claim(work: UnitOfWork, pipeline: str, number: int) -> int | None:
    """Gives what is new to version `number`; the number of all its shards, None where nothing is new."""
    stored = _stored(pipeline)
    records = sa.select(shards.c.id).where(stored, shards.c.accepted > shards.c.actuals)
    if work.connection.execute(records.limit(1)).first() is None:
        return None  # labels alone make no version
    claim = shards.update().where(_new(pipeline)).values(first_version=number)
    waits = work.connection.execute(_waiting_erasures(pipeline)).scalar()
    if not work.connection.execute(claim).rowcount and not waits:
        return None
    taken = (erasures.c.pipeline == pipeline) & erasures.c.version.is_(None)
    work.connection.execute(erasures.update().where(taken).values(version=number))
    count = sa.select(sa.func.count()).where(stored & shards.c.first_version.is_not(None))
    return int(work.connection.execute(count).scalar_one())


def _requested(connection: sa.Connection, pipeline: str, request_id: str) -> Version | None:
    request = (cut_requests.c.pipeline == pipeline) & (cut_requests.c.request_id == request_id)
    joined = (versions.c.pipeline == cut_requests.c.pipeline) & (
        versions.c.number == cut_requests.c.version
    )
    row = connection.execute(sa.select(versions).join(cut_requests, joined).where(request)).first()
    return _version(row) if row else None


def _pushed(connection: sa.Connection, pipeline: str, request_id: str) -> Pushed | None:
    chosen = (push_requests.c.pipeline == pipeline) & (push_requests.c.request_id == request_id)
    row = connection.execute(sa.select(push_requests).where(chosen)).first()
    if row is None:
        return None
    found = orjson.loads(row.rejections)
    return Pushed(row.digest, [Rejection(item[0], Reason(item[1]), *item[2:]) for item in found])


def _newest(
    connection: sa.Connection, pipeline: str, *which: sa.ColumnElement[bool]
) -> Version | None:
    query = sa.select(versions).where(versions.c.pipeline == pipeline, *which)
    row = connection.execute(query.order_by(versions.c.number.desc()).limit(1)).first()
    return _version(row) if row else None


def _columns(version: Version) -> dict[str, object]:
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
