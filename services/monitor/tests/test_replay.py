"""A crash between any two steps, and events that come again, change nothing in the end."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from google.protobuf.message import Message

from everloop_contracts.stubs.everloop.ingest.v1.events_pb2 import ActualsRecorded
from everloop_contracts.stubs.everloop.registry.v1.events_pb2 import ModelPromoted
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion
from everloop_monitor.adapters.store import chunks, decisions
from everloop_monitor.consumer import handler
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetectors
from everloop_runtime.database import Database
from everloop_runtime.events import new_event

NOW = datetime(2013, 5, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process is gone; nothing catches this."""


class MortalDatabase(Database):
    """Dies just before commit number `fatal`: with all that was committed before, as just after that."""

    def __init__(self, url, fatal):
        super().__init__(url)
        self.commits, self.fatal = 0, fatal

    @contextmanager
    def unit_of_work(self):
        with super().unit_of_work() as work:
            yield work
            if self.commits == self.fatal:
                raise Killed
        self.commits += 1


@pytest.fixture
def events(make_batch):
    """Promotion, five chunks in uneven batches of which the last two are bad, and their labels."""
    messages: list[Message] = [
        ModelPromoted(version=ModelVersion(model="trips", version=1, run_id="run-1"))
    ]
    first = 0
    for rows in (130, 170, 110, 90):
        messages.append(make_batch(first, rows, score=0.9 if first < 300 else 0.5))
        first += rows
        messages.append(
            ActualsRecorded(
                pipeline="trips",
                record_ids=[f"r{n}" for n in range(max(first - 250, 0), max(first - 50, 0))],
                labels=["true"] * (max(first - 50, 0) - max(first - 250, 0)),
            )
        )
    # A label of another record: those of the last chunk, which is half labelled, have come to rest.
    messages.append(ActualsRecorded(pipeline="trips", record_ids=["elsewhere"], labels=["true"]))
    return [
        new_event("test", "trips", message, id=f"event-{number}")
        for number, message in enumerate(messages)
    ]


def life(database, pipeline, events):
    """Consumes, and evaluates what is due after every event."""
    handle = handler(database, {"trips": pipeline}, wake=lambda: None)
    evaluator = Evaluator(
        database, {"trips": pipeline}, FakeDetectors(), retry_seconds=1000, now=lambda: NOW
    )
    for event in events:
        handle(event)
        while evaluator.step():
            pass


def outcome(database):
    with database.read() as connection:
        found = [
            replace(c, position=0) for c in chunks.newest_evaluated(connection, "", 0, None, 500)
        ]
        request = decisions.newest_requests(connection, "trips", 1)[0]
        made = decisions.request_ids(connection, "trips", 1)
        decided = {d.id for d in decisions.newest(connection, "", None, 500)}
    sent = sorted(
        (dict(json.loads(row.headers))["ce_id"], row.topic, row.value)
        for row in database.pending(1000)
    )
    return found, request, made, decided, sent


@pytest.mark.slow
def test_a_crash_between_any_two_steps_gives_the_same_chunks_and_one_request(
    tmp_path, empty_database, pipeline, events
):
    def fresh(name):
        return f"sqlite:///{shutil.copy(empty_database, tmp_path / name)}"

    whole = MortalDatabase(fresh("whole.db"), fatal=-1)
    life(whole, pipeline, events)
    expected = outcome(whole)
    found, request, made, _, sent = expected
    assert [c.index for c in found] == [4, 3, 2, 1, 0]
    assert request is not None
    assert len(made) == 1
    assert len(sent) == 3  # two chunks alert, one request
    commits = whole.commits
    # What was not committed to Kafka comes again; here everything does, twice, also after the last commit.
    life(whole, pipeline, [*events, *events])
    assert outcome(whole) == expected
    whole.close()
    for fatal in range(commits):
        url = fresh(f"{fatal}.db")
        mortal = MortalDatabase(url, fatal)
        with pytest.raises(Killed):
            life(mortal, pipeline, events)
        mortal.close()
        survivor = Database(url)
        life(survivor, pipeline, [*events, *events])
        assert outcome(survivor) == expected, f"killed before commit {fatal}"
        survivor.close()
