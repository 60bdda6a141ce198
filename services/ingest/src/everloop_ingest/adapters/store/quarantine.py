"""Profiles of versions, and the way out of quarantine."""

from __future__ import annotations

from dataclasses import asdict

import sqlalchemy as sa

from everloop_ingest.adapters.store.erasures import AUDIT, asked_for, done_by
from everloop_ingest.adapters.store.versions import IS_DONE, VERSIONS, newest_of
from everloop_ingest.checks import Profile
from everloop_ingest.domain import Audit, State, Version
from everloop_ingest.request_ids import reused
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event

__all__ = ["Quarantine", "forget_profiles"]


class Quarantine:
    """Each method is one transaction."""

    def __init__(self, database: Database) -> None:
        """Takes the service's database."""
        self._database = database

    def release(self, version: Version, entry: Audit, event: Event) -> None:
        """Takes a version out of quarantine, announces it and writes the audit entry; a repeat changes nothing.

        Raises:
            EverloopError: kind precondition, reasons NOT_QUARANTINED and SUPERSEDED; kind conflict, reason
                REQUEST_ID_REUSED: the request has done something else, or asks to erase records.
        """
        row = (VERSIONS.c.pipeline == version.pipeline) & (VERSIONS.c.number == version.number)
        with self._database.unit_of_work() as work:
            # Whoever releases or announces beside us writes this row too, and is done before we look at anything.
            held = sa.select(VERSIONS.c.state).where(row).with_for_update()
            state = work.connection.execute(held).scalar()
            request = entry.pipeline, entry.request_id
            done = done_by(work.connection, *request)
            if done == (entry.version, entry.action):
                return
            if done is not None or asked_for(work.connection, *request) is not None:
                raise reused()
            newest = newest_of(
                work.connection, version.pipeline, VERSIONS.c.state == State.AVAILABLE
            )
            if newest is not None and newest.number > version.number:
                raise EverloopError(
                    Kind.PRECONDITION,
                    "SUPERSEDED",
                    f"v{newest.number} holds all of v{version.number} and was announced",
                )
            if state != State.QUARANTINED:
                raise EverloopError(
                    Kind.PRECONDITION,
                    "NOT_QUARANTINED",
                    f"{version.pipeline} v{version.number} is not in quarantine",
                )
            profile = _profile_of(work, version.pipeline, version.number).encode()
            values = {"state": State.AVAILABLE, "error": "", "profile": profile}
            work.connection.execute(VERSIONS.update().where(row).values(values))
            forget_profiles(work, version)
            work.connection.execute(AUDIT.insert().values(asdict(entry)))
            work.publish(event)


def forget_profiles(work: UnitOfWork, version: Version) -> None:
    """Drops the profiles that are in that of a version which is announced."""
    older = (VERSIONS.c.pipeline == version.pipeline) & (VERSIONS.c.number < version.number)
    work.connection.execute(VERSIONS.update().where(older).values(profile=""))


def _profile_of(work: UnitOfWork, pipeline: str, number: int) -> Profile:
    """Records up to the last version that was announced, and of those in quarantine behind it up to `number`."""
    query = sa.select(VERSIONS.c.number, VERSIONS.c.state, VERSIONS.c.profile).where(
        VERSIONS.c.pipeline == pipeline, IS_DONE
    )
    total = Profile.decode("")
    for row in work.connection.execute(query.order_by(VERSIONS.c.number.desc())):
        if row.state == State.AVAILABLE:
            return Profile.decode(row.profile).plus(total)
        if row.number <= number:
            total = Profile.decode(row.profile).plus(total)
    return total
