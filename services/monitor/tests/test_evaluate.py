"""Chunks are evaluated when due, alert once, and lead to at most one request."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from everloop_contracts.stubs.everloop.monitoring.v1.events_pb2 import (
    DriftDetected,
    RetrainRequested,
)
from everloop_monitor.adapters.store import chunks, decisions, labels
from everloop_monitor.domain import drift_event_id
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetector, FakeDetectors
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_monitor.worker import keep_within_bounds
from everloop_runtime.events import decode

NOW = datetime(2013, 5, 1, tzinfo=UTC)
GOOD, BAD = (
    0.9,
    0.5,
)  # the fake's performance is the mean score; its reference 0.7, the tolerated loss 0.1


class Monitor:
    """A monitor without Kafka: events in, steps, events out."""

    def __init__(self, database, pipeline, make_batch):
        self.database, self.pipeline, self.make_batch = database, pipeline, make_batch
        self.detectors = FakeDetectors()
        self.now = NOW
        self.rows = 0
        self.restart()

    def restart(self, retry_seconds=1000):
        self.evaluator = Evaluator(
            self.database,
            {self.pipeline.name: self.pipeline},
            self.detectors,
            retry_seconds=retry_seconds,
            attempts=3,
            now=lambda: self.now,
        )

    def serve(self, version):
        watch_version(self.database, f"promoted-{version}", "trips", version, f"run-{version}", NOW)

    def predict(self, rows=100, **options):
        message = self.make_batch(self.rows, rows, **options)
        self.rows += rows
        log_predictions(self.database, f"logged-{self.rows}", message, 100, NOW)

    def label(self, first, last):
        """Labels come, and then one of a record that nobody asked about: they have come to rest."""
        self._label(f"actuals-{first}-{last}", [f"r{n}" for n in range(first, last)])
        steps = self.run()
        self._label(f"rest-{first}-{last}", ["elsewhere"])
        return steps + self.run()

    def _label(self, event_id, records):
        record_actuals(self.database, event_id, "trips", records, ["true"] * len(records), NOW)

    def run(self):
        steps = 0
        while self.evaluator.step():
            steps += 1
            assert steps < 1000
        return steps

    @property
    def chunks(self):
        with self.database.read() as connection:
            return chunks.newest_evaluated(connection, "trips", 0, None, 500)[::-1]

    @property
    def actions(self):
        with self.database.read() as connection:
            return [d.action for d in decisions.newest(connection, "trips", None, 500)][::-1]

    def sent(self, kind):
        events = []
        for _, _, _, value, headers in self.database.pending(1000):
            names = [(k, v.encode("latin-1")) for k, v in json.loads(headers)]
            event = decode(value, names)
            if isinstance(event.data, kind):
                events.append(event)
        return events


@pytest.fixture
def monitor(database, pipeline, make_batch):
    monitor = Monitor(database, pipeline, make_batch)
    monitor.serve(1)
    return monitor


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
    monitor.predict(100, x=0.9, score=GOOD)
    monitor.run()
    monitor.label(0, 100)
    monitor.run()
    (event,) = monitor.sent(DriftDetected)
    assert (event.id, event.cause) == (drift_event_id("trips/1/0"), "logged-100")
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
    monitor.now += timedelta(hours=2)
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
    assert [(chunk.index, chunk.report.realised is not None) for chunk in monitor.chunks] == [
        (1, False),
        (2, True),
    ]
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


def bounds(monitor, *, retained_rows=10**6, waiting_chunks=50, now=NOW):
    keep_within_bounds(
        monitor.database,
        ["trips"],
        retained_rows=retained_rows,
        retained_actuals_days=90,
        waiting_chunks=waiting_chunks,
        now=now,
    )


def test_the_oldest_predictions_go_and_their_chunks_are_closed(monitor):
    for _ in range(5):
        monitor.predict(100, score=BAD)
    monitor.run()
    bounds(monitor, retained_rows=250)
    monitor.label(0, 500)
    monitor.run()
    realised = [chunk.index for chunk in monitor.chunks if chunk.report.realised]
    assert realised == [3, 4]
    assert len(monitor.chunks) == 5


def test_only_the_newest_chunks_wait_for_labels(monitor):
    for _ in range(5):
        monitor.predict(100, score=GOOD)
    monitor.run()
    bounds(monitor, waiting_chunks=2)
    monitor.label(0, 500)
    monitor.run()
    assert [chunk.index for chunk in monitor.chunks if chunk.report.realised] == [3, 4]


def test_what_is_known_of_a_chunk_is_forgotten_with_it(monitor):
    for _ in range(6):
        monitor.predict(100, score=GOOD)
        monitor.label(0, 10)
        monitor.run()
        bounds(monitor, waiting_chunks=2)
    assert len(monitor.evaluator._unlabelled) <= 3


def test_old_labels_go(monitor):
    monitor.label(0, 3)
    bounds(monitor, now=NOW + timedelta(days=90))
    with monitor.database.read() as connection:
        assert len(labels.known(connection, "trips", ["r0", "r1", "r2"])) == 3
    bounds(monitor, now=NOW + timedelta(days=91))
    with monitor.database.read() as connection:
        assert labels.known(connection, "trips", ["r0", "r1", "r2"]) == {}
