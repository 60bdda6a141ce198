"""Versions of the flights' model that came the real way: fitted, logged to MLflow, announced, past the gates."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnxruntime
import pandas as pd
import pyarrow as pa

from bench.flights_model import PIPELINES
from everloop import Everloop
from everloop.demo import flights
from everloop.stack.endpoints import Endpoints
from everloop_contracts.pipeline import Pipeline, load_pipeline
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_features import feeds_from_rows, inputs_of
from everloop_runtime.events import encode, new_event
from everloop_runtime.kafka import producer
from everloop_trainer.domain import Cause, Dataset, State, Trained, Training
from everloop_trainer.evaluate import evaluate
from everloop_trainer.families import load_family
from everloop_trainer.messages import trained_message
from everloop_trainer.ports import Incumbent
from everloop_trainer.rows import Rows, prepare

__all__ = ["MODEL", "NotServed", "Version", "register"]

MODEL = "flight-delays"
FAMILY = "hist_gradient_boosting"
GATE_SECONDS = 90
DAYS = 4
"""First days of each month that teach."""


class NotServed(Exception):
    """A version did not get where it should be; says what was seen instead."""


@dataclass(frozen=True)
class Version:
    """A version in the registry.

    Attributes:
        number: as the registry counts.
        sha256: of its export.
        score: what it says about the row that is asked about.
    """

    number: int
    sha256: str
    score: float


def register(
    there: Endpoints,
    row: dict[str, Any],
    count: int,
    stage: registry_pb2.Stage.ValueType = registry_pb2.STAGE_PRODUCTION,
) -> list[Version]:
    """Brings versions past the gates one after the other; each has learned from more rows.

    Only the search is left out: parameters are the family's defaults. Everything else is the trainer's own code and
    the running services'.

    Args:
        there: a stack with the registry gateway, MLflow and Kafka.
        row: what is asked about.
        count: how many versions.
        stage: where their pipeline lets them go by itself: into Production, or into Staging where it asks for approval.

    Raises:
        NotServed: the gates refused one, or the gateway did not take it.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Here, because importing MLflow takes seconds.
    from everloop_trainer.adapters.mlflow import MlflowTracking

    pipeline = load_pipeline(PIPELINES / f"{MODEL}.yaml")
    params = {key: item.default for key, item in load_family(FAMILY).space.items()}
    feeds = feeds_from_rows([row], inputs_of(pipeline))
    tracking = MlflowTracking(there.mlflow_uri)
    versions: list[Version] = []
    incumbent: Incumbent | None = None
    for training, (taught, holdout, everything) in zip(
        _trainings(count), _datasets(pipeline, count), strict=True
    ):
        began = time.monotonic()
        done = evaluate(
            pipeline, training.dataset, taught, holdout, everything, FAMILY, params, incumbent
        )
        run_id = tracking.open_run(training)
        trained = tracking.log_model(
            run_id,
            pipeline,
            params,
            done.artifacts,
            Trained(
                run_id=run_id,
                model_uri="",
                family=FAMILY,
                metrics=done.metrics,
                baseline_version=done.baseline_version,
                baseline_metrics=done.baseline_metrics,
                export_difference=done.export_difference,
                onnx_sha256=done.onnx_sha256,
                seconds=time.monotonic() - began,
                training_rows=len(everything),
                holdout_rows=len(holdout),
            ),
        )
        _announce(there, training, trained)
        number = _registered(there, training.id, stage)
        logged = tracking.load(run_id, number)
        if stage == registry_pb2.STAGE_PRODUCTION:
            incumbent = logged
        answer: Any = onnxruntime.InferenceSession(logged.onnx).run(None, feeds)[0]
        versions.append(Version(number, done.onnx_sha256, float(answer[0, 1])))
        print(f"  {len(versions)} of {count} versions are registered", flush=True)
    if len({version.sha256 for version in versions}) < count:
        raise NotServed("two versions are the same artifact")
    return versions


def _trainings(count: int) -> Iterator[Training]:
    for number in range(1, count + 1):
        dataset = Dataset(MODEL, number, f"{MODEL}/v{number}", "", 0, 0, ())
        now = datetime.now(UTC)
        yield Training(
            f"bench-{number}", number, dataset, State.RUNNING, Cause.REQUEST, "bench", now
        )


def _datasets(pipeline: Pipeline, count: int) -> Iterator[tuple[Rows, Rows, Rows]]:
    """Rows to learn from, newer ones to judge by, and both; each time there are more, up to all of them."""
    rows = prepare(pipeline, _table())
    newest = pipeline.training.holdout.fraction
    for number in range(1, count + 1):
        everything = rows.part(0, round(len(rows) * (1 + number / count) / 2))
        yield *everything.split(newest), everything


def _table() -> pa.Table:
    frame = flights.load(DAYS).frame
    frame = frame.assign(scheduled_departure=pd.to_datetime(frame["scheduled_departure"], utc=True))
    return pa.Table.from_pandas(frame, preserve_index=False)


def _announce(there: Endpoints, training: Training, trained: Trained) -> None:
    event = new_event("trainer", MODEL, trained_message(training, trained), cause=training.cause_id)
    key, value, headers = encode(event)
    client = producer(there.kafka_bootstrap)
    try:
        client.send(event.topic, key=key, value=value, headers=headers).get(timeout=30)
    finally:
        client.close()


def _registered(there: Endpoints, training_id: str, stage: registry_pb2.Stage.ValueType) -> int:
    """Returns the number of the version that a training became, once it is where it should go."""
    deadline = time.monotonic() + GATE_SECONDS
    with Everloop.connect(Path(there.home)) as everloop:
        while True:
            found = [one for one in everloop.models(MODEL) if one.training_id == training_id]
            if found and found[0].stage == stage:
                return found[0].version
            if found and found[0].stage == registry_pb2.STAGE_REJECTED:
                refused = [gate.message for gate in found[0].gates if not gate.passed]
                raise NotServed(f"the gates refused {training_id}: {'; '.join(refused)}")
            if time.monotonic() > deadline:
                name = registry_pb2.Stage.Name(stage)
                raise NotServed(f"{training_id} is not in {name} after {GATE_SECONDS} s")
            time.sleep(0.1)
