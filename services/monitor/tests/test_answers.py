"""What becomes of a request, and whether its answer helped."""

from __future__ import annotations

from datetime import timedelta

import pytest

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1.events_pb2 import ModelRegistered
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import TrainingFailed
from everloop_contracts.stubs.everloop.training.v1.training_pb2 import CAUSE_DRIFT, CAUSE_NEW_ROWS
from everloop_monitor.adapters.store import decisions
from everloop_monitor.consumer import handler
from everloop_runtime.events import new_event

GOOD, BAD, WORSE = 0.9, 0.5, 0.4  # the tolerated performance is 0.6


def chunks(monitor, *scores, version=1):
    """Chunks that are predicted and labelled, one after the other."""
    for score in scores:
        first = monitor.rows
        monitor.predict(100, score=score, version=version)
        monitor.label(first, first + 100)


def requests(monitor):
    with monitor.database.read() as connection:
        return decisions.newest_requests(connection, "trips", 10)


@pytest.fixture
def asked(monitor):
    """A monitor that asked for a new model."""
    chunks(monitor, BAD, BAD)
    assert [r.outcome for r in requests(monitor)] == ["open"]
    return monitor


@pytest.fixture
def hear(asked):
    def hear(message, cause=""):
        handle = handler(asked.database, {"trips": asked.pipeline}, wake=lambda: None)
        event = new_event("test", "trips", message, cause=cause)
        handle(event)
        handle(event)
        return requests(asked)[0].outcome

    return hear


@pytest.mark.parametrize(
    ("score", "action", "helped"), [(GOOD, "helped", True), (WORSE, "did_not_help", False)]
)
def test_the_version_that_came_is_judged_once(asked, score, action, helped):
    asked.serve(2)
    chunks(asked, score, version=2)
    assert requests(asked)[0].helped is None, "one chunk is too few"
    chunks(asked, score, score, version=2)
    (request,) = [r for r in requests(asked) if r.version == 1]
    assert (request.outcome, request.answer, request.helped) == ("promoted", 2, helped)
    assert asked.actions.count(action) == 1
    with asked.database.read() as connection:
        (judged,) = [
            d for d in decisions.newest(connection, "trips", None, 50) if d.action == action
        ]
    assert (judged.request_id, judged.condition) == (request.id, "realised_performance")
    assert [e.chunk_id for e in judged.evidence] == ["trips/2/0", "trips/2/1"]


def test_one_that_did_not_help_doubles_the_cooldown(asked):
    asked.serve(2)
    chunks(asked, WORSE, WORSE, version=2)
    assert asked.actions[-2:] == ["did_not_help", "cooldown"]
    asked.now += timedelta(minutes=90)
    chunks(asked, WORSE, version=2)
    assert asked.actions[-1] == "cooldown", "an hour would be over"
    asked.now += timedelta(minutes=40)
    chunks(asked, WORSE, version=2)
    assert "retrain" in asked.actions[-3:]


def test_a_rollback_answers_nothing(asked):
    asked.serve(1)
    assert requests(asked)[0].outcome == "open"


def test_a_version_that_was_refused_closes_the_request(hear):
    refused = pb.ModelVersion(model="trips", version=2, stage=pb.STAGE_REJECTED)
    refused.cause = CAUSE_NEW_ROWS
    assert hear(ModelRegistered(version=refused)) == "open"
    refused.cause = CAUSE_DRIFT
    assert hear(ModelRegistered(version=refused)) == "rejected"


def test_a_training_that_failed_closes_the_request_that_caused_it(asked, hear):
    failed = TrainingFailed(pipeline="trips", error="no luck")
    assert hear(failed, cause="another") == "open"
    assert hear(failed) == "open"
    assert hear(failed, cause=requests(asked)[0].id) == "failed"
