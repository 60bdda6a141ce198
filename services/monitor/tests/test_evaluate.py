"""Chunks are evaluated when due, alert once, and lead to at most one request."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from everloop_contracts.stubs.everloop.monitoring.v1.events_pb2 import (
    DriftDetected,
    RetrainRequested,
)
from everloop_monitor.adapters.store import predictions
from everloop_monitor.domain import drift_event_id
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetector, FakeDetectors
from everloop_monitor.messages import chunk as message
from everloop_runtime.errors import EverloopError, Kind

NOW = datetime(2013, 5, 1, tzinfo=UTC)
GOOD, BAD = (
    0.9,
    0.5,
)  # the fake's performance is the mean score; its reference 0.7, the tolerated loss 0.1


def test_a_quiet_chunk_is_evaluated_once_and_waits_for_labels(monitor):
    monitor.predict(150, score=GOOD)
    monitor.run()
    (chunk,) = monitor.chunks
    assert (chunk.id, chunk.rows, chunk.alert, chunk.labelled_rows) == ("trips/1/0", 100, False, 0)
    assert chunk.first_event == datetime(1970, 1, 1, 5, 0, tzinfo=UTC)
    assert chunk.report.estimated.value == pytest.approx(GOOD)
    assert chunk.report.realised is None
    assert monitor.actions == ["wait"]
    assert monitor.sent(DriftDetected) == []
    assert monitor.run() == 0


def test_an_alerting_chunk_is_announced_once_with_its_cause(monitor):
    monitor.predict(100, x=0.9, score=GOOD, event_id="filled")
    monitor.run()
    monitor.label(0, 100)
    monitor.run()
    (event,) = monitor.sent(DriftDetected)
    assert (event.id, event.cause) == (drift_event_id("trips/1/0"), "filled")
    assert event.data.chunk.features[0].measurement.value == pytest.approx(0.9)
    assert event.data.chunk.alert


def test_performance_is_realised_when_enough_labels_are_here(monitor):
    monitor.predict(100, score=GOOD)
    monitor.run()
    monitor.label(0, 49)
    monitor.run()
    (chunk,) = monitor.chunks
    assert (chunk.labelled_rows, chunk.report.realised) == (49, None)
    monitor.label(49, 50)
    monitor.run()
    (chunk,) = monitor.chunks
    assert chunk.labelled_rows == 50
    assert chunk.report.realised.value == pytest.approx(GOOD)
    assert chunk.report.realised.lower == pytest.approx(0.6)
    monitor.label(50, 100)
    assert monitor.run() == 0


def test_labels_that_came_before_the_prediction_count(monitor):
    monitor.label(0, 100)
    monitor.predict(100, score=GOOD)
    monitor.run()
    (chunk,) = monitor.chunks
    assert chunk.labelled_rows == 100
    assert chunk.report.realised is not None


def test_rows_without_record_id_never_get_a_label(monitor):
    monitor.predict(100, score=GOOD, records=["r1"] + [""] * 99)
    monitor.run()
    monitor.label(0, 100)
    assert monitor.run() == 0  # the chunk cannot reach half of its rows: closed
    assert monitor.chunks[0].report.realised is None


def test_two_bad_chunks_of_three_ask_for_one_retraining(monitor):
    for score in (GOOD, BAD, GOOD, BAD, BAD):
        monitor.predict(100, score=score)
    monitor.label(0, 500)
    monitor.run()
    # Five drift evaluations, then five realised ones.
    assert monitor.actions == ["wait"] * 8 + ["retrain", "already_requested"]
    (event,) = monitor.sent(RetrainRequested)
    assert event.data.chunk_id == "trips/1/3"
    assert event.data.model_version == 1
    assert event.cause == drift_event_id("trips/1/3")
    assert "chunk 1: roc_auc 0.5000 < 0.6000; chunk 3" in event.data.reason


def test_an_old_version_is_still_evaluated_but_asks_for_nothing(monitor):
    monitor.predict(100, score=BAD)
    monitor.predict(100, score=BAD)
    monitor.serve(2)
    monitor.label(0, 200)
    monitor.run()
    assert [chunk.report.realised.alert for chunk in monitor.chunks] == [True, True]
    assert monitor.actions == ["wait"] * 4
    assert monitor.sent(RetrainRequested) == []


def test_after_the_cooldown_a_new_window_asks_again(monitor):
    for rows in range(3):
        monitor.predict(100, score=BAD)
        monitor.label(rows * 100, rows * 100 + 100)
        monitor.run()
    assert len(monitor.sent(RetrainRequested)) == 1
    monitor.now += timedelta(hours=7)  # nobody answered within six
    monitor.predict(100, score=BAD)
    monitor.label(300, 400)
    monitor.run()
    assert len(monitor.sent(RetrainRequested)) == 2


def test_a_version_that_cannot_be_evaluated_does_not_hold_up_another(monitor):
    monitor.detectors.failing.add(1)
    monitor.predict(100, score=GOOD)
    monitor.serve(2)
    monitor.predict(100, score=GOOD, version=2)
    monitor.run()
    assert [chunk.id for chunk in monitor.chunks] == ["trips/2/0"]
    monitor.detectors.failing.clear()
    monitor.restart()
    monitor.run()
    assert [chunk.id for chunk in monitor.chunks] == ["trips/1/0", "trips/2/0"]


class Choking(FakeDetector):
    """Fails on what it cannot digest."""

    def read(self, rows):
        if rows.numbers["x"].max() > 1:
            raise ZeroDivisionError("cannot digest this")
        return super().read(rows)

    def realised(self, rows, actuals):
        if rows.scores.min() < 0:
            raise ValueError("cannot digest this")
        return super().realised(rows, actuals)


def test_a_chunk_that_cannot_be_evaluated_does_not_hold_up_those_behind_it(monitor):
    monitor.detectors.detector = Choking()
    monitor.restart(retry_seconds=0)
    monitor.predict(100, x=2.0, score=GOOD)
    monitor.predict(100, score=-1.0)
    monitor.predict(100, score=GOOD)
    assert monitor.label(100, 300) >= 3, "it is tried more than once"
    assert [
        (chunk.index, chunk.report and chunk.report.realised is not None, chunk.failure)
        for chunk in monitor.chunks
    ] == [
        (0, None, "ZeroDivisionError: cannot digest this"),
        (1, False, "ValueError: cannot digest this"),
        (2, True, ""),
    ]
    assert message(monitor.chunks[0]).failure == "ZeroDivisionError: cannot digest this"
    monitor.restart()
    assert monitor.run() == 0


def test_a_metric_that_is_not_defined_leaves_the_chunk_without(monitor):
    monitor.detectors.detector = FakeDetector(reference=None)
    monitor.predict(100, score=BAD)
    monitor.label(0, 100)
    monitor.run()
    (chunk,) = monitor.chunks
    assert (chunk.report.estimated, chunk.report.realised, chunk.labelled_rows) == (None, None, 100)
    assert monitor.run() == 0


def test_an_outage_is_waited_for_and_a_sample_that_is_not_there_is_not(monitor):
    class Sampleless(FakeDetectors):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def fitted(self, pipeline, version, run_id):
            super().fitted(pipeline, version, run_id)
            raise EverloopError(self.kind, "NO_SAMPLE", "told to fail")

    monitor.predict(100, score=GOOD)
    monitor.detectors = Sampleless(Kind.UNAVAILABLE)
    monitor.restart(retry_seconds=0)
    for _ in range(20):
        assert monitor.evaluator.step()
    monitor.detectors = Sampleless(Kind.NOT_FOUND)
    monitor.restart(retry_seconds=0)
    assert monitor.run() == 3, "as many as there are attempts"
    (chunk,) = monitor.chunks
    assert (chunk.report, chunk.alert) == (None, False)
    assert "told to fail" in chunk.failure


def test_a_chunk_without_its_rows_does_not_hold_up_those_behind_it(monitor):
    monitor.predict(100, score=GOOD)
    with monitor.database.unit_of_work() as work:
        predictions.drop_oldest(work.connection, "trips", 0, 10)
    monitor.predict(100, score=GOOD)
    monitor.restart(retry_seconds=0)
    monitor.run()
    assert [(chunk.index, bool(chunk.failure)) for chunk in monitor.chunks] == [
        (0, True),
        (1, False),
    ]


def test_a_label_counts_for_every_prediction_of_its_record(monitor):
    monitor.predict(100, score=GOOD, records=[f"r{n // 2}" for n in range(100)])
    monitor.label(0, 50)
    (chunk,) = monitor.chunks
    assert (chunk.labelled_rows, chunk.report.realised is not None) == (100, True)


def test_a_label_that_is_corrected_after_the_verdict_changes_nothing(monitor):
    monitor.predict(100, score=GOOD)
    monitor.label(0, 100)
    before = monitor.chunks
    monitor.record({"r1": "false"})
    assert monitor.run() == 0
    assert monitor.chunks == before


def test_rows_without_record_id_do_not_keep_the_others_waiting(monitor):
    records = [f"r{n}" if n % 4 else "" for n in range(100)]
    monitor.predict(100, score=GOOD, records=records)
    monitor.record({f"r{n}": "true" for n in range(100)})
    monitor.run()
    (chunk,) = monitor.chunks
    assert (chunk.labelled_rows, chunk.report.realised is not None) == (75, True)


def test_a_pipeline_that_is_no_longer_declared_rests_and_goes_on_when_it_is(monitor):
    monitor.predict(100, score=GOOD)
    gone = Evaluator(monitor.database, {}, monitor.detectors, retry_seconds=0)
    gone.show()
    assert not gone.step()
    monitor.restart()
    monitor.label(0, 100)
    assert [chunk.report.realised is not None for chunk in monitor.chunks] == [True]


def test_a_chunk_whose_version_never_came_waits_but_does_not_lag(monitor):
    monitor.predict(100, version=9)
    monitor.now += timedelta(seconds=60)
    monitor.evaluator.show_lag()
    labels = {"pipeline": "trips"}
    assert REGISTRY.get_sample_value("everloop_monitor_waiting_chunks", labels) == 1
    assert REGISTRY.get_sample_value("everloop_monitor_lag_seconds", labels) == 0
    monitor.predict(100)
    monitor.now += timedelta(seconds=30)
    monitor.evaluator.show_lag()
    assert REGISTRY.get_sample_value("everloop_monitor_waiting_chunks", labels) == 2
    assert REGISTRY.get_sample_value("everloop_monitor_lag_seconds", labels) == 30
