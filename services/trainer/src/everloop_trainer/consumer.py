"""Kafka in: dataset versions and requests for a new model, in one consumer."""

from __future__ import annotations

from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2 as ingest_events
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2 as monitoring_events
from everloop_runtime.events import DATASETS, DRIFT, Event
from everloop_trainer.messages import dataset_of
from everloop_trainer.request import Requests

__all__ = ["GROUP", "WATCHED", "Handler"]

GROUP = "everloop.trainer"
WATCHED = (DATASETS, DRIFT)


class Handler:
    """Hands each event to its use case; DriftDetected is on the same topic and is not ours."""

    def __init__(self, requests: Requests) -> None:
        """Takes the use cases."""
        self._requests = requests

    def __call__(self, event: Event) -> None:
        """Handles one event; a repeat changes nothing."""
        match event.data:
            case ingest_events.DatasetVersionCreated():
                dataset = dataset_of(event.data.dataset)
                self._requests.dataset_created(event.id, dataset, event.cause)
            case monitoring_events.RetrainRequested():
                self._requests.retrain_requested(event.id, event.data.pipeline)
