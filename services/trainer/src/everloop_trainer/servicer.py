"""gRPC in: TrainingService."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc

from everloop_contracts.stubs.everloop.training.v1 import training_pb2, training_pb2_grpc
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page
from everloop_trainer.adapters import store
from everloop_trainer.domain import Training
from everloop_trainer.messages import training_message
from everloop_trainer.request import Requests

__all__ = ["TrainingServicer"]

_WATCH_SECONDS = 0.25


class TrainingServicer(training_pb2_grpc.TrainingServiceServicer):
    """Answers from the database, and passes requests on."""

    def __init__(self, database: Database, requests: Requests) -> None:
        """Takes the trainer's database and the use cases."""
        self._database = database
        self._requests = requests

    def StartTraining(
        self, request: training_pb2.StartTrainingRequest, context: grpc.ServicerContext
    ) -> training_pb2.StartTrainingResponse:
        """Asks for a training on the newest data."""
        training = self._requests.start(request.pipeline, request.request_id)
        return training_pb2.StartTrainingResponse(training=training_message(training))

    def GetTraining(
        self, request: training_pb2.GetTrainingRequest, context: grpc.ServicerContext
    ) -> training_pb2.GetTrainingResponse:
        """Returns one training."""
        return training_pb2.GetTrainingResponse(training=training_message(self._get(request.id)))

    def ListTrainings(
        self, request: training_pb2.ListTrainingsRequest, context: grpc.ServicerContext
    ) -> training_pb2.ListTrainingsResponse:
        """Lists trainings, newest first."""
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            found = store.page(connection, request.pipeline, before, size + 1)
        return training_pb2.ListTrainingsResponse(
            trainings=[training_message(item) for item in found[:size]],
            next_page_token=str(found[size - 1].position) if len(found) > size else "",
        )

    def WatchTraining(
        self, request: training_pb2.WatchTrainingRequest, context: grpc.ServicerContext
    ) -> Iterator[training_pb2.WatchTrainingResponse]:
        """Streams a training's state whenever it changes, until it has ended."""
        last, ended = None, threading.Event()
        if not context.add_callback(ended.set):
            return
        while context.is_active():
            training = self._get(request.id)
            if training != last:
                yield training_pb2.WatchTrainingResponse(training=training_message(training))
                last = training
            if training.state.ended or ended.wait(_WATCH_SECONDS):
                return

    def CancelTraining(
        self, request: training_pb2.CancelTrainingRequest, context: grpc.ServicerContext
    ) -> training_pb2.CancelTrainingResponse:
        """Cancels a training."""
        training = self._requests.cancel(request.id, request.actor, request.reason)
        return training_pb2.CancelTrainingResponse(training=training_message(training))

    def _get(self, training_id: str) -> Training:
        with self._database.read() as connection:
            training = store.by_id(connection, training_id)
        if training is None:
            raise EverloopError(
                Kind.NOT_FOUND,
                "TRAINING_NOT_FOUND",
                f"there is no training '{training_id}'",
                training=training_id,
            )
        return training
