"""A version from begin to end, and what waits for the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import orjson
import sqlalchemy as sa

from everloop_ingest.adapters.store.erasures import (
    ERASURES,
    erasures_of,
    note_erasures,
    waiting_erasures,
)
from everloop_ingest.adapters.store.parts import PARTS, parts_where, replace_parts
from everloop_ingest.adapters.store.quarantine import forget_profiles
from everloop_ingest.adapters.store.shards import SHARDS, in_no_version, stored
from everloop_ingest.adapters.store.versions import (
    CUT_REQUESTS,
    IS_DONE,
    VERSIONS,
    columns_of,
    newest_of,
    of_request,
)
from everloop_ingest.checks import Profile
from everloop_ingest.domain import Part, State, Unversioned, Version
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.events import Event
from everloop_runtime.leases import Lease, Leases

__all__ = ["Change", "Cuts"]


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


class Cuts:
    """Each method is one transaction or one statement."""

    def __init__(self, database: Database, leases: Leases) -> None:
        """Takes the service's database, and the leases that say who may cut."""
        self._database = database
        self._leases = leases

    def unversioned(self, pipeline: str) -> Unversioned:
        """What is stored and in no version yet."""
        columns = (
            sa.func.coalesce(sa.func.sum(SHARDS.c.accepted - SHARDS.c.actuals), 0),
            sa.func.min(SHARDS.c.create_time),
        )
        with self._database.read() as connection:
            row = connection.execute(sa.select(*columns).where(in_no_version(pipeline))).one()
            return Unversioned(int(row[0]), row[1])

    def erasures_wait(self, pipeline: str) -> bool:
        """Whether erasures were asked for that no version has taken."""
        with self._database.read() as connection:
            return bool(connection.execute(waiting_erasures(pipeline)).scalar())

    def begin(self, pipeline: str, request_id: str, now: datetime, lease: Lease) -> Version | None:
        """The version of a request: the one it has, the newest where nothing is new, else a new one, CUTTING.

        A new version takes every shard that is in none yet, and every erasure that was asked for; a version that failed
        is no answer. None where there is no record at all.

        Raises:
            EverloopError: kind unavailable, reason LEASE_LOST, as in `complete` and `fail`: nothing has changed.
        """
        with self._database.unit_of_work() as work:
            self._leases.hold(work, lease)
            known = of_request(work.connection, pipeline, request_id)
            if known is not None and known.state is not State.FAILED:
                return known
            newest = newest_of(work.connection, pipeline)
            number = newest.number + 1 if newest else 1
            shard_count = _claim(work, pipeline, number)
            if shard_count is None:
                answer = newest_of(work.connection, pipeline, VERSIONS.c.state != State.FAILED)
            else:
                answer = Version(pipeline, number, State.CUTTING, request_id, now, shard_count)
                work.connection.execute(VERSIONS.insert().values(columns_of(answer)))
            if answer is not None:
                key = {"pipeline": pipeline, "request_id": request_id}
                row = {"version": answer.number, "create_time": now}
                insert = work.insert(CUT_REQUESTS).values(key | row)
                work.connection.execute(
                    insert.on_conflict_do_update(index_elements=list(key), set_=row)
                )
            return answer

    def shards_of(self, version: Version) -> list[str]:
        """Objects of a version whose rows are in no part yet, in the order in which they were stored."""
        chosen = _unmerged(version)
        with self._database.read() as connection:
            keys = connection.execute(
                sa.select(SHARDS.c.key).where(chosen).order_by(SHARDS.c.id)
            ).scalars()
            return list(dict.fromkeys(keys))  # shards that were put together share their object

    def trace_of(self, version: Version) -> str:
        """`traceparent` of the newest record of a version that came with one; empty where none did."""
        traced = sa.select(SHARDS.c.trace).where(_unmerged(version), SHARDS.c.trace != "")
        with self._database.read() as connection:
            found = connection.execute(traced.order_by(SHARDS.c.id.desc()).limit(1))
            return found.scalar() or ""

    def base(self, pipeline: str) -> tuple[list[Part], str]:
        """What the next version starts from: the newest parts, in order, and the object of labels that wait or ''."""
        labels = sa.select(VERSIONS.c.labels).where(VERSIONS.c.pipeline == pipeline, IS_DONE)
        newest = PARTS.c.until_version.is_(None)
        with self._database.read() as connection:
            found = connection.execute(labels.order_by(VERSIONS.c.number.desc()).limit(1)).scalar()
            return parts_where(connection, pipeline, newest), found or ""

    def erased(self, version: Version) -> list[str]:
        """Record ids that a version being cut is to forget."""
        query = sa.select(ERASURES.c.record_ids).where(erasures_of(version))
        with self._database.read() as connection:
            found = [orjson.loads(text) for text in connection.execute(query).scalars()]
            return sorted({record_id for ids in found for record_id in ids})

    def profiles(self, pipeline: str) -> tuple[Profile, Profile]:
        """Records up to the last version that was announced, and those that came after it."""
        query = sa.select(VERSIONS.c.state, VERSIONS.c.profile)
        query = query.where(VERSIONS.c.pipeline == pipeline, IS_DONE)
        after = Profile.decode("")
        with self._database.read() as connection:
            for row in connection.execute(query.order_by(VERSIONS.c.number.desc())):
                if row.state == State.AVAILABLE:
                    return Profile.decode(row.profile), after
                after = after.plus(Profile.decode(row.profile))
        return Profile.decode(""), after

    def complete(self, version: Version, change: Change, event: Event | None, lease: Lease) -> None:
        """Makes a version available and announces it, once; without an event it is in quarantine."""
        row = (VERSIONS.c.pipeline == version.pipeline) & (VERSIONS.c.number == version.number)
        cutting = VERSIONS.c.state == State.CUTTING
        with self._database.unit_of_work() as work:
            self._leases.hold(work, lease)
            update = VERSIONS.update().where(row & cutting)
            profile = change.profile.encode()
            values = columns_of(version) | {"labels": change.labels, "profile": profile}
            if work.connection.execute(update.values(values)).rowcount != 1:
                return
            replace_parts(work, version, change.added, change.removed)
            work.connection.execute(SHARDS.update().where(_unmerged(version)).values(merged=True))
            note_erasures(work, version)
            if event is not None:
                forget_profiles(work, version)
                work.publish(event)

    def fail(self, version: Version, lost: Sequence[str], lease: Lease) -> None:
        """Ends a version, `error` says why, whose objects `lost` are not there any more.

        Its other shards are new again, and so would be a lost one that somebody brings back and marks as not lost.
        """
        row = (VERSIONS.c.pipeline == version.pipeline) & (VERSIONS.c.number == version.number)
        update = VERSIONS.update().where(row & (VERSIONS.c.state == State.CUTTING))
        mine = stored(version.pipeline)
        with self._database.unit_of_work() as work:
            self._leases.hold(work, lease)
            failed = update.values(state=version.state, error=version.error)
            if work.connection.execute(failed).rowcount != 1:
                return
            mark = SHARDS.update().where(mine & (SHARDS.c.key == sa.bindparam("gone")))
            work.connection.execute(
                mark.values(lost=True, first_version=None), [{"gone": key} for key in lost]
            )
            waits = ERASURES.update().where(erasures_of(version)).values(version=None)
            work.connection.execute(waits)
            release = SHARDS.update().where(mine & (SHARDS.c.first_version == version.number))
            work.connection.execute(release.values(first_version=None))


def _claim(work: UnitOfWork, pipeline: str, number: int) -> int | None:
    """Gives what is new to version `number`; the number of all its shards, None where nothing is new."""
    mine = stored(pipeline)
    records = sa.select(SHARDS.c.id).where(mine, SHARDS.c.accepted > SHARDS.c.actuals)
    if work.connection.execute(records.limit(1)).first() is None:
        return None  # labels alone make no version
    claim = SHARDS.update().where(in_no_version(pipeline)).values(first_version=number)
    waits = work.connection.execute(waiting_erasures(pipeline)).scalar()
    if not work.connection.execute(claim).rowcount and not waits:
        return None
    taken = (ERASURES.c.pipeline == pipeline) & ERASURES.c.version.is_(None)
    work.connection.execute(ERASURES.update().where(taken).values(version=number))
    count = sa.select(sa.func.count()).where(mine & SHARDS.c.first_version.is_not(None))
    return int(work.connection.execute(count).scalar_one())


def _unmerged(version: Version) -> sa.ColumnElement[bool]:
    """Shards of a version, and of those before it, whose rows are in no part."""
    among = SHARDS.c.first_version <= version.number
    return stored(version.pipeline) & among & SHARDS.c.merged.is_(False)
