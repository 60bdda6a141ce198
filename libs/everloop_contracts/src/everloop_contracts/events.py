"""The events that services send each other: their topics, their messages, and who sends them."""

from __future__ import annotations

import importlib

from google.protobuf.message import Message

__all__ = [
    "ACTUALS",
    "DATASETS",
    "DRIFT",
    "INFERENCE",
    "INGEST",
    "MODELS",
    "MONITOR",
    "PREDICTIONS",
    "REGISTRY_GATEWAY",
    "TOPICS",
    "TRAINER",
    "TRAININGS",
    "message_class",
]

DATASETS = "everloop.datasets"
ACTUALS = "everloop.actuals"
TRAININGS = "everloop.trainings"
MODELS = "everloop.models"
PREDICTIONS = "everloop.predictions"
DRIFT = "everloop.drift"

# The services, as `ce_source` names them.
INGEST = "everloop.ingest"
TRAINER = "everloop.trainer"
REGISTRY_GATEWAY = "everloop.registry-gateway"
INFERENCE = "everloop.inference"
MONITOR = "everloop.monitor"

TOPICS = {
    "everloop.ingest.v1.DatasetVersionCreated": DATASETS,
    "everloop.ingest.v1.ActualsRecorded": ACTUALS,
    "everloop.training.v1.ModelTrained": TRAININGS,
    "everloop.training.v1.TrainingFailed": TRAININGS,
    "everloop.registry.v1.ModelRegistered": MODELS,
    "everloop.registry.v1.ModelPromoted": MODELS,
    "everloop.registry.v1.RolloutStarted": MODELS,
    "everloop.registry.v1.RolloutEnded": MODELS,
    "everloop.inference.v1.PredictionsLogged": PREDICTIONS,
    "everloop.monitoring.v1.DriftDetected": DRIFT,
    "everloop.monitoring.v1.RetrainRequested": DRIFT,
}
"""Topic of every event type; a new event is one line here and one message in an events.proto."""


def message_class(event_type: str) -> type[Message]:
    """Returns the Protobuf class of an event type of `TOPICS`."""
    package, _, name = event_type.rpartition(".")
    module = importlib.import_module(f"everloop_contracts.stubs.{package}.events_pb2")
    found: type[Message] = getattr(module, name)
    return found
