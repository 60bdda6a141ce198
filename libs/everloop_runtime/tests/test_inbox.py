"""Ids of old events are forgotten, those of younger ones never."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from everloop_runtime import inbox
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.inbox import InboxSweeper
from everloop_runtime.service import Stopper


def receive(database, event_id: str, days_ago: float) -> None:
    with database.unit_of_work() as work:
        assert work.first_time(event_id)
        work.connection.execute(
            sa.text("UPDATE inbox SET received_at = :at WHERE event_id = :id").bindparams(
                sa.bindparam("at", type_=sa.DateTime), id=event_id
            ),
            {"at": datetime.now(UTC).replace(tzinfo=None) - timedelta(days=days_ago)},
        )


def known(database) -> set[str]:
    with database.read() as connection:
        return set(connection.scalars(sa.text("SELECT event_id FROM inbox")))


def test_ids_older_than_the_retention_go_in_batches_and_the_others_stay(database, monkeypatch):
    monkeypatch.setattr(inbox, "BATCH", 3)
    for number in range(8):
        receive(database, f"old-{number}", 21.1)
    receive(database, "young", 20.9)
    with database.unit_of_work() as work:
        assert work.first_time("new")
    batches = []
    forget = database.forget

    def counted(*args: object) -> int:
        batches.append(forget(*args))
        return int(batches[-1])

    monkeypatch.setattr(database, "forget", counted)
    sweeper, stopper = InboxSweeper(database, 21), Stopper()
    sweeper.start(stopper)
    deadline = time.monotonic() + 10
    while len(known(database)) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopper.stop()
    sweeper.stop()
    assert known(database) == {"young", "new"}
    assert batches == [3, 3, 2]
    with database.unit_of_work() as work:
        assert not work.first_time("young")


def test_a_database_that_is_away_does_not_end_the_service(database, monkeypatch):
    def away(*args: object) -> int:
        stopper.stop()
        raise EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")

    monkeypatch.setattr(database, "forget", away)
    sweeper, stopper = InboxSweeper(database, 21), Stopper()
    sweeper.start(stopper)
    sweeper.stop()
    assert stopper.stopping
    assert not stopper.failed
