"""gRPC in: MonitoringService."""

from __future__ import annotations

from collections.abc import Collection

import grpc

from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2, monitoring_pb2_grpc
from everloop_monitor import messages
from everloop_monitor.adapters.store import chunks, decisions, labels, predictions
from everloop_monitor.batches import find
from everloop_monitor.domain import span_of
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page

__all__ = ["MonitoringServicer"]


class MonitoringServicer(monitoring_pb2_grpc.MonitoringServiceServicer):
    """Answers from the database."""

    def __init__(self, database: Database, pipelines: Collection[str]) -> None:
        """Takes the monitor's database and the names of its pipelines."""
        self._database = database
        self._pipelines = pipelines

    def ListChunks(
        self, request: monitoring_pb2.ListChunksRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.ListChunksResponse:
        """Lists chunks that were evaluated or given up, newest first."""
        self._check(request.pipeline)
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            found = chunks.newest_evaluated(
                connection, request.pipeline, request.model_version, before, size + 1
            )
        return monitoring_pb2.ListChunksResponse(
            chunks=[messages.chunk(chunk) for chunk in found[:size]],
            next_page_token=str(found[size - 1].position) if len(found) > size else "",
        )

    def ListDecisions(
        self, request: monitoring_pb2.ListDecisionsRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.ListDecisionsResponse:
        """Lists decisions, newest first."""
        self._check(request.pipeline)
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            found = decisions.newest(connection, request.pipeline, before, size + 1)
        return monitoring_pb2.ListDecisionsResponse(
            decisions=[messages.decision(decision) for decision in found[:size]],
            next_page_token=str(found[size - 1].position) if len(found) > size else "",
        )

    def GetPrediction(
        self, request: monitoring_pb2.GetPredictionRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.GetPredictionResponse:
        """Finds a logged prediction and the label that came for it."""
        if not request.prediction_id:
            raise EverloopError(
                Kind.INVALID, "MISSING_FIELD", "prediction_id is empty", field="prediction_id"
            )
        with self._database.read() as connection:
            for batch in predictions.covering(connection, span_of(request.prediction_id)):
                found = find(batch, request.prediction_id)
                if found is not None:
                    known = labels.known(connection, found.pipeline, [found.record_id])
                    return messages.prediction(found, known.get(found.record_id, ""))
        raise EverloopError(
            Kind.NOT_FOUND,
            "PREDICTION_NOT_FOUND",
            f"no prediction {request.prediction_id} is kept; it may not have arrived yet, or be too old",
            prediction_id=request.prediction_id,
        )

    def _check(self, pipeline: str) -> None:
        if pipeline and pipeline not in self._pipelines:
            raise EverloopError(
                Kind.NOT_FOUND,
                "PIPELINE_NOT_FOUND",
                f"there is no pipeline '{pipeline}'",
                pipeline=pipeline,
            )
