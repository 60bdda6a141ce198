"""Kafka in: predictions, labels, versions and promotions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_contracts.stubs.everloop.ingest.v1.events_pb2 import ActualsRecorded
from everloop_contracts.stubs.everloop.registry.v1.events_pb2 import ModelPromoted, ModelRegistered
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import STAGE_REJECTED, STAGE_STAGING
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import TrainingFailed
from everloop_contracts.stubs.everloop.training.v1.training_pb2 import CAUSE_DRIFT
from everloop_monitor.record import (
    expect_version,
    fail_request,
    log_predictions,
    record_actuals,
    refuse_version,
    watch_version,
)
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import ACTUALS, MODELS, PREDICTIONS, TRAININGS, Event

__all__ = ["GROUP", "WATCHED", "handler"]

GROUP = "everloop.monitor"
WATCHED = (PREDICTIONS, ACTUALS, MODELS, TRAININGS)


def handler(
    database: Database, pipelines: Mapping[str, Pipeline], wake: Callable[[], None]
) -> Callable[[Event], None]:
    """What to do with an event; `wake` is called when something may be due afterwards.

    Raises (the returned function):
        EverloopError: kind invalid: the batch is malformed or no pipeline has its name.
    """

    def handle(event: Event) -> None:
        now = datetime.now(UTC)
        match event.data:
            case PredictionsLogged() as logged:
                rows = _known(pipelines, logged.pipeline).monitoring.chunk_rows
                if not log_predictions(database, event.id, logged, rows, now):
                    return
            case ActualsRecorded() as actuals:
                _known(pipelines, actuals.pipeline)
                record_actuals(
                    database, event.id, actuals.pipeline, actuals.record_ids, actuals.labels, now
                )
            case ModelPromoted(version=promoted):
                watch_version(
                    database, event.id, promoted.model, promoted.version, promoted.run_id, now
                )
            case ModelRegistered(version=passed) if passed.stage == STAGE_STAGING:
                expect_version(database, event.id, passed.model, passed.version, passed.run_id)
            case ModelRegistered(version=refused) if refused.stage == STAGE_REJECTED:
                if refused.cause != CAUSE_DRIFT:
                    return
                refuse_version(database, event.id, refused.model, refused.version)
            case TrainingFailed(pipeline=name):
                fail_request(database, event.id, name, event.cause)
            case _:
                return  # a rejected version predicts nothing, and rollouts change nothing that is watched
        wake()

    return handle


def _known(pipelines: Mapping[str, Pipeline], name: str) -> Pipeline:
    if name not in pipelines:
        raise EverloopError(
            Kind.INVALID, "PIPELINE_UNKNOWN", f"there is no pipeline '{name}' here", pipeline=name
        )
    return pipelines[name]
