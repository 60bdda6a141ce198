"""Events as a plain consumer sees them, and the chains they form."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from everloop.demo.events import EventLog, Seen, describe, read
from everloop.demo.lineage import causes
from everloop.demo.summary import chain_gaps
from everloop_contracts.stubs.everloop.inference.v1 import events_pb2 as inference_events
from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2
from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2 as ingest_events
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2 as monitoring_events
from everloop_contracts.stubs.everloop.registry.v1 import events_pb2 as registry_events
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.everloop.training.v1 import events_pb2 as training_events
from everloop_runtime.events import encode, new_event


def seen(message: Message, id_: str, cause: str = "") -> Seen:
    """An event as the services write it, read back."""
    _, value, headers = encode(
        new_event("everloop.test", "flight-delays", message, cause=cause, id=id_)
    )
    return read(value, headers)


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def log(told) -> EventLog:
    return EventLog("nowhere:1", told.append)


def promoted(version: int) -> registry_events.ModelPromoted:
    return registry_events.ModelPromoted(
        version=registry_pb2.ModelVersion(version=version), previous_version=version - 1
    )


def test_an_event_reads_back_as_the_runtime_wrote_it():
    dataset = dataset_pb2.DatasetVersion(version=3, rows=52_000, git_tag="flight-delays/v3")
    event = seen(ingest_events.DatasetVersionCreated(dataset=dataset), "e1", "request-1")
    assert (event.name, event.id, event.cause) == ("DatasetVersionCreated", "e1", "request-1")
    assert (event.source, event.pipeline) == ("everloop.test", "flight-delays")
    assert event.time.tzinfo is not None
    assert "dataset v3: 52,000 rows" in describe(event)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            training_events.ModelTrained(
                family="mlp",
                training_seconds=61.2,
                metrics={"roc_auc": 0.71},
                baseline_version=1,
                baseline_metrics={"roc_auc": 0.69},
            ),
            "mlp in 61 s: roc_auc 0.7100; v1 on the same rows: roc_auc 0.6900",
        ),
        (training_events.TrainingFailed(training_id="t1", error="no rows"), "t1 failed: no rows"),
        (
            registry_events.ModelRegistered(
                version=registry_pb2.ModelVersion(
                    version=2,
                    stage=registry_pb2.STAGE_REJECTED,
                    gates=[registry_pb2.GateResult(gate="metric_floor")],
                )
            ),
            "v2 is rejected; gates: metric_floor NO",
        ),
        (promoted(2), "v2 is in Production, replaces v1"),
        (
            registry_events.RolloutStarted(
                rollout=registry_pb2.Rollout(candidate_version=3, baseline_version=2)
            ),
            "v3 is on trial beside v2",
        ),
        (
            registry_events.RolloutEnded(
                rollout=registry_pb2.Rollout(
                    candidate_version=3, state=registry_pb2.ROLLOUT_STATE_ABORTED, reason="slow"
                )
            ),
            "the trial of v3 is aborted: slow",
        ),
        (monitoring_events.RetrainRequested(reason="2 of 3"), "2 of 3"),
    ],
)
def test_each_event_is_told_in_words(message, said):
    assert said in describe(seen(message, "e"))


def test_one_line_per_event_and_none_for_a_repeat(log, told):
    event = seen(promoted(1), "0123456789", "abcdefghij")
    log.add(event)
    log.add(event)
    assert len(told) == len(log.seen) == 1
    assert "ModelPromoted" in told[0] and "01234567" in told[0] and "← abcdefgh" in told[0]


def test_events_in_bulk_are_counted_and_known_but_not_told(log, told):
    log.add(seen(inference_events.PredictionsLogged(pipeline="flight-delays"), "bulk"))
    assert not told and not log.seen
    assert log.counts["PredictionsLogged"] == 1
    assert log.knows("bulk") and not log.knows("other")


def chain(log: EventLog, *, cause_of_drift: str) -> Seen:
    log.add(seen(inference_events.PredictionsLogged(), "logged"))
    log.add(seen(monitoring_events.DriftDetected(), "drift", cause_of_drift))
    log.add(seen(monitoring_events.RetrainRequested(), "retrain", "drift"))
    log.add(seen(training_events.ModelTrained(), "trained", "retrain"))
    log.add(seen(promoted(2), "promoted", "trained"))
    return log.seen[-1]


def test_a_promotion_is_followed_back_to_what_was_logged(log):
    last = chain(log, cause_of_drift="logged")
    found = causes(log, last)
    assert [event.id for event in found] == ["promoted", "trained", "retrain", "drift"]
    assert chain_gaps(log, last, found) == []


def test_a_chain_that_ends_in_nothing_known_is_a_gap(log):
    last = chain(log, cause_of_drift="never-seen")
    assert any("never-seen" in gap for gap in chain_gaps(log, last, causes(log, last)))


def test_a_promotion_that_no_drift_caused_is_a_gap(log):
    log.add(seen(training_events.ModelTrained(), "trained", "request"))
    log.add(seen(promoted(2), "promoted", "trained"))
    last = log.seen[-1]
    gaps = chain_gaps(log, last, causes(log, last))
    assert any("no RetrainRequested" in gap for gap in gaps)


def test_causes_that_point_at_each_other_end(log):
    log.add(seen(promoted(1), "a", "b"))
    log.add(seen(promoted(2), "b", "a"))
    assert [event.id for event in causes(log, log.seen[0])] == ["a", "b"]
