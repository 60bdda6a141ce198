"""gRPC in: MonitoringService."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator

import grpc
import sqlalchemy as sa

from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2, monitoring_pb2_grpc
from everloop_monitor import messages
from everloop_monitor.adapters.store import chunks, decisions, labels, predictions, warnings
from everloop_monitor.batches import find
from everloop_monitor.domain import RecordedDecision, span_of
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page

__all__ = ["MonitoringServicer"]


_WATCH_SECONDS, _WATCH_PAGE = 0.5, 100


def _watched(connection: sa.Connection, decision: RecordedDecision) -> monitoring_pb2.WatchResponse:
    index = int(decision.chunk_id.rpartition("/")[2])
    chunk = chunks.by_id(connection, decision.pipeline, decision.version, index)
    return monitoring_pb2.WatchResponse(
        decision=messages.decision(decision), chunk=messages.chunk(chunk) if chunk else None
    )


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

    def ListAlerts(
        self, request: monitoring_pb2.ListAlertsRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.ListAlertsResponse:
        """Lists chunks that alert, newest first."""
        self._check(request.pipeline)
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            found = chunks.newest_alerting(connection, request.pipeline, before, size + 1)
        return monitoring_pb2.ListAlertsResponse(
            alerts=[messages.alert(chunk) for chunk in found[:size]],
            next_page_token=str(found[size - 1].position) if len(found) > size else "",
        )

    def ListEarlyWarnings(
        self, request: monitoring_pb2.ListEarlyWarningsRequest, context: grpc.ServicerContext
    ) -> monitoring_pb2.ListEarlyWarningsResponse:
        """Lists early warnings, newest first."""
        self._check(request.pipeline)
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            found = warnings.newest(connection, request.pipeline, before, size + 1)
        return monitoring_pb2.ListEarlyWarningsResponse(
            early_warnings=[messages.early_warning(warning) for _, warning in found[:size]],
            next_page_token=str(found[size - 1][0]) if len(found) > size else "",
        )

    def Watch(
        self, request: monitoring_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[monitoring_pb2.WatchResponse]:
        """Streams what is decided and warned of from now on."""
        self._check(request.pipeline)
        ended = threading.Event()
        if not context.add_callback(ended.set):
            return
        with self._database.read() as connection:
            decided = [d.position for d in decisions.newest(connection, request.pipeline, None, 1)]
            warned = [p for p, _ in warnings.newest(connection, request.pipeline, None, 1)]
        position, warning = max(decided, default=0), max(warned, default=0)
        # A client sees by the headers that it misses nothing from here on.
        context.send_initial_metadata(())
        while context.is_active():
            with self._database.read() as connection:
                made = decisions.after(connection, request.pipeline, position, _WATCH_PAGE)
                told = warnings.after(connection, request.pipeline, warning, _WATCH_PAGE)
                answers = [_watched(connection, decision) for decision in made]
            answers += [
                monitoring_pb2.WatchResponse(early_warning=messages.early_warning(one))
                for _, one in told
            ]
            yield from answers
            position = max([position, *(d.position for d in made)])
            warning = max([warning, *(p for p, _ in told)])
            if not answers and ended.wait(_WATCH_SECONDS):
                return

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
