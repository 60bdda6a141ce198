"""The consumer, the worker's thread, the metrics, the settings and the examples in the docstrings."""

from __future__ import annotations

import dataclasses
import doctest
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_contracts.stubs.everloop.ingest.v1.events_pb2 import ActualsRecorded
from everloop_contracts.stubs.everloop.registry.v1.events_pb2 import ModelPromoted, ModelRegistered
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion
from everloop_monitor import decide, detect, domain, metrics, normal, stream
from everloop_monitor.adapters.store import predictions
from everloop_monitor.consumer import handler
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetectors
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_monitor.retention import Bounds, keep_within_bounds
from everloop_monitor.settings import MonitorSettings
from everloop_monitor.stream import Stream
from everloop_monitor.warn import Lookout
from everloop_monitor.worker import Chore, Worker
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event
from everloop_runtime.service import Stopper

README = Path(__file__).parents[1] / "README.md"
FLIGHTS = Path(__file__).parents[3] / "pipelines" / "flight-delays.yaml"


def value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_events_of_unknown_pipelines_are_invalid(database, make_batch):
    handle = handler(database, {}, wake=lambda: None)
    for message in (make_batch(0, 1), ActualsRecorded(pipeline="trips")):
        with pytest.raises(EverloopError) as caught:
            handle(new_event("test", "trips", message))
        assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "PIPELINE_UNKNOWN")


def test_labels_without_their_records_are_invalid(database, pipeline):
    handle = handler(database, {"trips": pipeline}, wake=lambda: None)
    with pytest.raises(EverloopError) as caught:
        handle(new_event("test", "trips", ActualsRecorded(pipeline="trips", record_ids=["r1"])))
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "MALFORMED_BATCH")


def test_an_empty_batch_is_settled(database, pipeline):
    handle = handler(database, {"trips": pipeline}, wake=lambda: None)
    handle(new_event("test", "trips", PredictionsLogged(pipeline="trips", model_version=1)))
    with database.read() as connection:
        assert predictions.stream(connection, "trips", 1) == Stream()


def test_the_worker_is_woken_by_a_chunk_that_is_full_and_not_by_each_event(
    database, make_pipeline, make_batch
):
    """A turn of the worker costs as much as storing an event."""
    woken = []
    handle = handler(database, {"trips": make_pipeline()}, lambda: woken.append(1))
    handle(new_event("test", "trips", make_batch(0, 60)))
    assert not woken
    handle(again := new_event("test", "trips", make_batch(60, 60)))
    assert len(woken) == 1
    handle(again)
    assert len(woken) == 1


def test_the_worker_evaluates_what_the_consumer_brings_and_counts_it(
    database, make_pipeline, make_batch
):
    name = "counted"
    pipeline = make_pipeline(name=name, chunks=1, of=1)
    detectors = FakeDetectors()
    evaluator = Evaluator(database, {name: pipeline}, detectors, retry_seconds=1)
    maintained = []

    def maintain():
        maintained.append(1)
        return False

    worker = Worker(evaluator, detectors.prepare, [Chore(maintain, 1000.0)])
    handle = handler(database, {name: pipeline}, worker.wake)
    stopper = Stopper()
    worker.start(stopper)
    for message in (
        ModelRegistered(version=ModelVersion(model=name, version=1)),
        ModelPromoted(version=ModelVersion(model=name, version=1, run_id="run")),
        make_batch(0, 120, score=0.5, x=0.9, pipeline=name),
        ActualsRecorded(
            pipeline=name, record_ids=[f"r{n}" for n in range(100)], labels=["true"] * 100
        ),
    ):
        handle(new_event("test", name, message))
    deadline = time.monotonic() + 10
    while not value("everloop_monitor_decisions_total", pipeline=name, action="retrain"):
        assert time.monotonic() < deadline
        stopper.wait(0.01)
    stopper.stop()
    worker.stop()
    assert (detectors.prepared, maintained) == (1, [1])
    assert value("everloop_monitor_predictions_total", pipeline=name) == 120
    assert value("everloop_monitor_actuals_total", pipeline=name) == 100
    assert value("everloop_monitor_drift_share_ratio", pipeline=name) == 1.0
    assert value("everloop_monitor_feature_distance", pipeline=name, feature="x") == pytest.approx(
        0.9
    )
    assert value("everloop_monitor_reconstruction_error", pipeline=name) == 1.0
    assert value("everloop_monitor_chunk_model_version", pipeline=name) == 1
    for kind in ("estimated", "realised"):
        measured = value(f"everloop_monitor_{kind}_performance", pipeline=name, metric="roc_auc")
        assert measured == pytest.approx(0.5)
    for condition in ("drift", "estimated_performance", "realised_performance"):
        alerts = value("everloop_monitor_alerts_total", pipeline=name, condition=condition)
        assert alerts == 1
    assert value("everloop_monitor_waiting_chunks", pipeline=name) == 0
    assert value("everloop_monitor_evaluation_failures_total", pipeline=name) == 0


def test_the_worker_outlives_an_outage_of_the_database():
    """What is due stays due; any other failure ends the thread, and with it the process."""
    outcomes = [
        EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away"),
        EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away"),
        True,
        ZeroDivisionError("a mistake"),
    ]

    class Flaky:
        def show(self):
            self.step()

        def show_lag(self):
            pass

        def step(self):
            outcome = outcomes.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    stopper = Stopper()
    worker = Worker(Flaky(), lambda: None, [Chore(lambda: False, 1000.0)])  # type: ignore[arg-type]
    worker.start(stopper)
    assert stopper.wait(10)
    worker.stop()
    assert (outcomes, stopper.failed) == ([], True)


def test_maintenance_goes_on_at_once_while_there_is_more_to_do():
    class Idle:
        def show(self):
            pass

        show_lag = show

        def step(self):
            return False

    stopper = Stopper()
    left = [True, True, True, False]

    def maintain():
        more = left.pop(0)
        if not left:
            stopper.stop()
        return more

    worker = Worker(Idle(), lambda: None, [Chore(maintain, 1000.0)])  # type: ignore[arg-type]
    worker.start(stopper)
    assert stopper.wait(10)
    worker.stop()
    assert left == []


WORDS: dict[str, set[str]] = {
    "metric": {"roc_auc"},
    "condition": set(domain.CONDITIONS),
    "action": set(get_args(domain.Action)),
    "stage": {"drift", "realised"},
    "kind": {"predictions", "labels", "chunks", "warnings", "decisions", "versions"},
}
"""Every value that a label other than pipeline and feature can have."""


def documented():
    """Metrics of the README's table: labels by name."""
    rows = re.findall(
        r"^\| `(everloop_monitor_\w+)` \| ([\w, ]+) \|", README.read_text(), re.MULTILINE
    )
    return {name: tuple(labels.split(", ")) for name, labels in rows}


def test_the_readme_lists_every_metric_with_its_labels():
    declared = {}
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            declared[name] = metric._labelnames
            assert not set(metric._labelnames) - {"pipeline", "feature", *WORDS}
    assert documented() == declared


def test_the_readme_lists_every_bound_with_its_default():
    rows = re.findall(r"^\| `([A-Z_]+)` \| ([\d,]+) \|", README.read_text(), re.MULTILINE)
    fields = [*(field.name for field in dataclasses.fields(Bounds)), "fitted_models"]
    defaults = {name.upper(): MonitorSettings.model_fields[name].default for name in fields}
    assert {name: int(number.replace(",", "")) for name, number in rows} == defaults


def test_every_metric_moves_and_no_label_grows(monitor):
    def samples():
        families = [f for f in REGISTRY.collect() if f.name.startswith("everloop_monitor_")]
        found = [sample for family in families for sample in family.samples]
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in found}

    before = samples()
    handle = handler(monitor.database, {"trips": monitor.pipeline}, wake=lambda: None)
    with pytest.raises(EverloopError):
        handle(new_event("test", "stranger", monitor.make_batch(0, 1, pipeline="stranger")))
    stranger = ModelVersion(model="stranger", version=1, run_id="run")
    handle(new_event("test", "stranger", ModelPromoted(version=stranger)))
    monitor.predict(100, score=0.5, x=0.9)
    monitor.label(0, 100)
    monitor.chunk_rows = 1_000
    monitor.predict(100, x=0.9)
    Lookout(monitor.database, {"trips": monitor.pipeline}, monitor.detectors).look()
    monitor.chunk_rows = 100
    monitor.detectors.detector = None
    monitor.restart(retry_seconds=0)
    monitor.predict(100)
    monitor.run()
    monitor.evaluator.show()
    bounds = Bounds(
        retained_rows=100,
        retained_labels=1,
        retained_label_days=90,
        waiting_chunks=1,
        retained_chunks=1,
        retained_decisions=1,
        retained_versions=1,
    )
    while keep_within_bounds(monitor.database, bounds, monitor.now):
        pass
    after = samples()
    for name, labels in documented().items():
        gauge = not name.endswith(("_total", "_seconds")) or name.endswith("lag_seconds")
        name += "_count" if name.endswith("duration_seconds") else ""
        moved = [
            key for key in after if key[0] == name and (gauge or after[key] > before.get(key, 0))
        ]
        assert moved, name
        assert {tuple(sorted(label for label, _ in key[1])) for key in moved} == {
            tuple(sorted(labels))
        }
    for _, labels in after:
        for label, word in labels:
            assert word in WORDS.get(label, {word}), (label, word)
            assert (label, word) != ("pipeline", "stranger")


def test_after_a_restart_the_gauges_show_the_newest_chunk(database, make_pipeline, make_batch):
    pipeline = make_pipeline(name="restarted")
    watch_version(database, "p", "restarted", 1, "run", datetime.now(UTC))
    batch = make_batch(0, 200, x=0.25, pipeline="restarted")
    log_predictions(database, "l", batch, 100, datetime.now(UTC))
    evaluator = Evaluator(database, {"restarted": pipeline}, FakeDetectors(), retry_seconds=1)
    evaluator.show()
    assert value("everloop_monitor_waiting_chunks", pipeline="restarted") == 2
    assert value("everloop_monitor_lag_seconds", pipeline="restarted") > 0
    while evaluator.step():
        pass
    labels = {"pipeline": "restarted", "feature": "x"}
    metrics.DISTANCE.labels(**labels).set(0)
    Evaluator(database, {"restarted": pipeline}, FakeDetectors(), retry_seconds=1).show()
    assert value("everloop_monitor_feature_distance", **labels) == 0.25
    assert value("everloop_monitor_waiting_chunks", pipeline="restarted") == 0


def test_labels_of_an_old_chunk_do_not_turn_the_drift_gauges_back(
    database, make_pipeline, make_batch
):
    name = "ordered"
    pipeline = make_pipeline(name=name)
    watch_version(database, "p", name, 1, "run", datetime.now(UTC))
    for number, x in enumerate((0.1, 0.4)):
        batch = make_batch(number * 100, 100, x=x, pipeline=name)
        log_predictions(database, f"l{number}", batch, 100, datetime.now(UTC))
    evaluator = Evaluator(database, {name: pipeline}, FakeDetectors(), retry_seconds=1)
    while evaluator.step():
        pass
    records = [f"r{n}" for n in range(100)]
    record_actuals(database, "a", name, records, ["true"] * 100, datetime.now(UTC))
    while evaluator.step():
        pass
    assert value("everloop_monitor_realised_performance", pipeline=name, metric="roc_auc") > 0
    assert value("everloop_monitor_feature_distance", pipeline=name, feature="x") == pytest.approx(
        0.4
    )


def test_a_broken_setting_is_named(monkeypatch, capsys):
    monkeypatch.setenv("EVERLOOP_RETAINED_ROWS", "none")
    with pytest.raises(SystemExit) as caught:
        MonitorSettings.load()
    assert caught.value.code == 2
    assert "EVERLOOP_RETAINED_ROWS" in capsys.readouterr().err


BROKEN = "pipeline: trips\nschema: {id: id, time: at, fields: {}}\n"


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        (
            FLIGHTS.read_text(),
            "EVERLOOP_RETAINED_ROWS: 4999 rows hold no chunk of pipeline flight-delays",
        ),
        (BROKEN, "trips.yaml:"),
    ],
    ids=["a setting that fits no pipeline", "a broken pipeline"],
)
def test_what_cannot_work_is_said_at_the_start(tmp_path, specification, said):
    (tmp_path / "trips.yaml").write_text(specification)
    done = subprocess.run(
        [sys.executable, "-m", "everloop_monitor"],
        env={
            **os.environ,
            "EVERLOOP_PIPELINES_DIR": str(tmp_path),
            "EVERLOOP_RETAINED_ROWS": "4999",
            "EVERLOOP_DATABASE_URL": f"sqlite:///{tmp_path / 'monitor.db'}",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "module", [domain, stream, normal, detect, decide], ids=lambda m: m.__name__
)
def test_the_examples_hold(module):
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted
