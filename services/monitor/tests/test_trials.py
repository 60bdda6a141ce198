"""A version on trial is watched as any other, and asks for nothing."""

from __future__ import annotations

import pytest
from prometheus_client import REGISTRY

from everloop_contracts.stubs.everloop.monitoring.v1.events_pb2 import (
    DriftDetected,
    RetrainRequested,
)
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_contracts.stubs.everloop.registry.v1.events_pb2 import (
    ModelPromoted,
    ModelRegistered,
    RolloutEnded,
    RolloutStarted,
)
from everloop_monitor.adapters.store import predictions, versions
from everloop_monitor.batches import find
from everloop_monitor.consumer import handler
from everloop_monitor.domain import span_of
from everloop_monitor.messages import prediction
from everloop_runtime.events import new_event

GOOD, BAD = 0.9, 0.5  # the tolerated performance is 0.6
SHADOWS = "00000000000000bb"


@pytest.fixture
def hear(monitor):
    """Lets the monitor hear events."""
    handle = handler(monitor.database, {"trips": monitor.pipeline}, wake=lambda: None)

    def hear(*messages):
        for message in messages:
            handle(new_event("test", "trips", message))

    return hear


def version(number, stage=pb.STAGE_STAGING):
    return pb.ModelVersion(model="trips", version=number, run_id=f"run-{number}", stage=stage)


def rollout(number=2):
    return pb.Rollout(id="r", model="trips", candidate_version=number, baseline_version=1)


@pytest.fixture
def tried(monitor, hear):
    """A monitor whose version 1 serves and whose version 2 is on trial."""
    hear(ModelRegistered(version=version(2)), RolloutStarted(rollout=rollout()))
    return monitor


def known(monitor):
    with monitor.database.read() as connection:
        return versions.known(connection, "trips"), versions.production(connection, "trips")


def test_a_version_that_passed_its_gates_is_known_before_it_serves(tried, hear):
    hear(ModelRegistered(version=version(3, pb.STAGE_REJECTED)))
    assert known(tried) == ({1, 2}, 1)


def test_what_rollouts_announce_changes_nothing(tried, hear):
    before = known(tried)
    ended = rollout()
    ended.state = pb.ROLLOUT_STATE_ABORTED
    hear(RolloutStarted(rollout=rollout(9)), RolloutEnded(rollout=ended), RolloutEnded())
    assert known(tried) == before


def test_a_registration_that_comes_again_does_not_put_production_away(tried, hear):
    hear(ModelPromoted(version=version(2)), ModelRegistered(version=version(2)))
    assert known(tried) == ({1, 2}, 2)


def test_a_candidate_is_evaluated_on_its_own_sample_and_asks_for_no_model(tried):
    for _ in range(3):
        tried.predict(100, version=2, score=BAD)
    tried.label(0, 300)
    tried.run()
    assert set(tried.detectors.asked) == {("trips", 2, "run-2")}
    assert [chunk.report.realised.alert for chunk in tried.chunks] == [True] * 3
    assert set(tried.actions) == {"wait"}
    assert tried.sent(RetrainRequested) == []
    assert [event.data.chunk.id for event in tried.sent(DriftDetected)] == [
        f"trips/2/{number}" for number in range(3)
    ]


def test_labels_reach_the_answer_and_its_shadow(tried):
    shadow = tried.make_batch(0, 100, version=2, score=BAD, epoch=SHADOWS)
    shadow.shadow = True
    tried.predict(100, score=GOOD)
    handler(tried.database, {"trips": tried.pipeline}, wake=lambda: None)(
        new_event("test", "trips", shadow)
    )
    tried.label(0, 100)
    tried.run()
    realised = {chunk.version: chunk.report.realised.value for chunk in tried.chunks}
    assert realised == {1: pytest.approx(GOOD), 2: pytest.approx(BAD)}
    assert [chunk.labelled_rows for chunk in tried.chunks] == [100, 100]

    told = {}
    with tried.database.read() as connection:
        for epoch in ("00000000000000aa", SHADOWS):
            (batch,) = predictions.covering(connection, span_of(f"{epoch}-7"))
            found = find(batch, f"{epoch}-7")
            assert found is not None
            told[epoch] = prediction(found, "true")
    assert [(one.model_version, one.record_id, one.shadow) for one in told.values()] == [
        (1, "r7", False),
        (2, "r7", True),
    ]


def test_a_bad_performance_is_announced_though_the_drift_was_before(tried):
    tried.predict(50, version=2, score=GOOD, x=0.9)
    tried.predict(50, version=2, score=0.55, x=0.9)
    tried.run()
    (drifted,) = tried.sent(DriftDetected)
    assert not drifted.data.chunk.estimated_performance.alert
    tried.record({f"r{n}": "true" for n in range(50, 100)})
    tried.run()
    tried.record({"elsewhere": "true"})
    tried.run()
    first, second = tried.sent(DriftDetected)
    assert first.id == drifted.id != second.id
    assert second.data.chunk.realised_performance.alert


def test_the_gauges_show_production_and_not_the_candidate(tried):
    def shown(name, **labels):
        return REGISTRY.get_sample_value(
            f"everloop_monitor_{name}", {"pipeline": "trips", **labels}
        )

    tried.predict(100, score=GOOD)
    tried.predict(100, version=2, score=BAD)
    tried.label(0, 200)
    tried.run()
    for _ in ("as they were evaluated", "after a restart"):
        assert shown("chunk_model_version") == 1
        for kind in ("estimated", "realised"):
            assert shown(f"{kind}_performance", metric="roc_auc") == pytest.approx(GOOD)
        tried.evaluator.show()


def test_a_candidate_that_was_promoted_goes_on_with_its_chunks(tried, hear):
    tried.predict(100, version=2, score=BAD)
    tried.label(0, 100)
    tried.run()
    hear(ModelPromoted(version=version(2)), RolloutEnded(rollout=rollout()))
    tried.predict(100, version=2, score=BAD)
    tried.label(100, 200)
    tried.run()
    (asked,) = tried.sent(RetrainRequested)
    assert (asked.data.model_version, asked.data.chunk_id) == (2, "trips/2/1")
