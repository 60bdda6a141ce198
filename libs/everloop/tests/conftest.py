"""An Everloop in this process: all five services as fakes, over real gRPC and real HTTP."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from everloop.addresses import Addresses
from everloop.client import Everloop
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2, inference_pb2_grpc
from everloop_contracts.stubs.everloop.ingest.v1 import (
    dataset_pb2,
    dead_letter_pb2,
    ingest_pb2,
    ingest_pb2_grpc,
)
from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2, monitoring_pb2_grpc
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_contracts.stubs.everloop.training.v1 import training_pb2, training_pb2_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2, grpc_service_pb2_grpc

MODEL = "flight-delays"


def refuse(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str, message: str) -> Any:
    """Ends a call as the services do: a status with one ErrorInfo."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="everloop"))
    status = status_pb2.Status(
        code=code_pb2.Code.Value(code.name), message=message, details=[detail]
    )
    context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(code, message)


def known(context: grpc.ServicerContext, pipeline: str) -> None:
    if pipeline != MODEL:
        refuse(context, grpc.StatusCode.NOT_FOUND, "PIPELINE_NOT_FOUND", "no such pipeline")


class FakeEverloop:
    """What the fakes remember and answer.

    Attributes:
        version: Version that answers predictions.
        fail: Told the number of each prediction request; True lets it fail.
        asked: Rows of each prediction request, and by which door.
        pushes: Request id of each push, also of those that were not answered.
        push_sizes: Records of each.
        away: Pushes and replays that are still not to be answered.
        trainings: What is listed.
        progress: States of the training that is started, one for each time that it is asked after.
        asked_to_train: Request id of each training that was asked for.
        cancelled: Every request to cancel one.
        away_after: The trainer goes away once when so many trials have ended.
        rollouts: What is listed, newest first; the first one runs if its state says so.
        asked_of_rollouts: Every request to start or to end one.
        letters: Dead letters, listed two to a page.
        letter_filters: Filter of each page that was asked for.
        replays: What was asked to be replayed.
    """

    def __init__(self) -> None:
        self.version = 1
        self.fail: Callable[[int], bool] = lambda number: False
        self.asked: list[tuple[str, list[str]]] = []
        self.records: list[bytes] = []
        self.promoted: list[registry_pb2.PromoteModelVersionRequest] = []
        self.ruled: list[Any] = []
        self.asked_datasets: list[int] = []
        self.mlflow_away = False
        self.artifacts: list[tuple[str, bytes]] = []
        self.entries: list[registry_pb2.AuditEntry] = []
        self.verified = registry_pb2.VerifyAuditResponse(intact=True)
        self.noted_heads: list[str] = []
        self.cuts: dict[str, int] = {}
        self.quarantined: set[int] = set()
        self.cutting: set[int] = set()
        self.versioning = "dvc"
        self.erased: list[tuple[list[str], str, str]] = []
        self.released: list[tuple[int, str, str]] = []
        self.page_sizes: list[int] = []
        self.pushes: list[str] = []
        self.push_sizes: list[int] = []
        self.away = 0
        self.lock = threading.Lock()
        self.cancelled: list[Any] = []
        self.away_after = -1
        self.trainings = [self.training(training_pb2.Training.STATE_SUCCEEDED, 6)]
        self.progress = [
            self.training(training_pb2.Training.STATE_QUEUED, 0),
            self.training(training_pb2.Training.STATE_RUNNING, 3),
            self.training(training_pb2.Training.STATE_RUNNING, 3),
            self.training(training_pb2.Training.STATE_SUCCEEDED, 6),
        ]
        self.asked_to_train: list[str] = []
        self.rollouts: list[registry_pb2.Rollout] = []
        self.asked_of_rollouts: list[Any] = []
        self.letters = [self.letter(offset) for offset in (9, 5, 2)]
        self.letter_filters: list[dead_letter_pb2.DeadLetterFilter] = []
        self.replays: list[dead_letter_pb2.ReplayDeadLettersRequest] = []

    def letter(self, offset: int) -> dead_letter_pb2.DeadLetter:
        letter = dead_letter_pb2.DeadLetter(
            id=f"everloop.records.{MODEL}/0/{offset}",
            pipeline=MODEL,
            reason="OUT_OF_RANGE",
            field="distance",
            message=f"-{offset} is not between 1 and 10000",
            value=b'{"distance": -%d} [\xff]' % offset,
            value_bytes=22,
            key=b"UA-1",
        )
        letter.headers.add(name="from", value=b"here")
        letter.message_time.FromJsonString("2026-03-01T12:00:00Z")
        letter.reject_time.FromJsonString("2026-03-01T12:00:05Z")
        return letter

    def admit(self, door: str, ids: list[str]) -> bool:
        """Notes a prediction request; False if it is to fail."""
        with self.lock:
            self.asked.append((door, ids))
            return not self.fail(len(self.asked))

    def dataset(self, version: int) -> dataset_pb2.DatasetVersion:
        if version in self.cutting:
            return dataset_pb2.DatasetVersion(
                pipeline=MODEL, version=version, state=dataset_pb2.DatasetVersion.STATE_CUTTING
            )
        return dataset_pb2.DatasetVersion(
            pipeline=MODEL,
            version=version,
            state=dataset_pb2.DatasetVersion.STATE_QUARANTINED
            if version in self.quarantined
            else dataset_pb2.DatasetVersion.STATE_AVAILABLE,
            error="gust: 100% of [all] are null" if version in self.quarantined else "",
            git_tag=f"{MODEL}/v{version}",
            git_commit="c" * 40,
            git_url="/data/repo",
            versioning=self.versioning,
            rows=1000 * version,
            labelled_rows=900,
            cause_id="the-cause",
            objects=[dataset_pb2.DatasetObject(path="rows/part-00000.parquet", md5="d41d8")],
            data=dataset_pb2.DatasetObject(path="rows", md5="e52ca.dir", size_bytes=7),
            audit=[
                dataset_pb2.DatasetAuditEntry(action="RELEASED", reason=reason, actor=actor)
                for number, reason, actor in self.released
                if number == version
            ],
        )

    def training(
        self, state: training_pb2.Training.State.ValueType, trials: int
    ) -> training_pb2.Training:
        return training_pb2.Training(
            id="training-1",
            pipeline=MODEL,
            dataset_version=1,
            state=state,
            cause=training_pb2.CAUSE_DRIFT,
            trials_done=trials,
            trials_total=6,
            best_metric=0.71 if trials else 0.0,
            best_family="mlp" if trials else "",
        )

    def model(self, version: int) -> registry_pb2.ModelVersion:
        return registry_pb2.ModelVersion(
            model=MODEL,
            version=version,
            stage=registry_pb2.STAGE_PRODUCTION if version == 2 else registry_pb2.STAGE_ARCHIVED,
            run_id="run-1",
            family="mlp",
            metrics={"roc_auc": 0.7},
            dataset_version=version,
            dataset_tag=f"{MODEL}/v{version}",
            cause=training_pb2.CAUSE_DRIFT if version == 2 else training_pb2.CAUSE_FIRST_DATA,
            gates=[registry_pb2.GateResult(gate="metric_floor", passed=True, message="0.7 >= 0.6")],
            etag=f"etag-{version}",
            training_id="training-1",
        )


class Ingest(ingest_pb2_grpc.IngestServiceServicer):
    def __init__(self, fake: FakeEverloop) -> None:
        self.fake = fake

    def PushRecords(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        self.fake.pushes.append(request.request_id)
        self.fake.push_sizes.append(len(request.records))
        if self.fake.away:
            self.fake.away -= 1
            refuse(context, grpc.StatusCode.UNAVAILABLE, "BROKER_UNAVAILABLE", "no broker")
        answer = ingest_pb2.PushRecordsResponse()
        for body in request.records:
            self.fake.records.append(body)
            try:
                record = json.loads(body)
            except ValueError:
                answer.results.add(reason="MALFORMED_JSON", message="not JSON")
                continue
            if isinstance(record.get("distance"), str):
                answer.results.add(
                    reason="WRONG_TYPE", field="distance", message="distance is not a number"
                )
                continue
            answer.results.add(accepted=True)
            answer.accepted += 1
        return answer

    def CutVersion(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        version = self.fake.cuts.setdefault(request.request_id, len(self.fake.cuts) + 1)
        return ingest_pb2.CutVersionResponse(dataset=self.fake.dataset(version))

    def ReleaseVersion(self, request: Any, context: Any) -> Any:
        self.fake.released.append((request.version, request.reason, request.actor))
        return ingest_pb2.ReleaseVersionResponse(dataset=self.fake.dataset(request.version))

    def EraseRecords(self, request: Any, context: Any) -> Any:
        self.fake.erased.append((list(request.record_ids), request.field, request.value))
        return ingest_pb2.EraseRecordsResponse(dataset=self.fake.dataset(3))

    def GetDatasetVersion(self, request: Any, context: Any) -> Any:
        return ingest_pb2.GetDatasetVersionResponse(dataset=self.fake.dataset(request.version or 2))

    def ListDatasetVersions(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        # Two to a page, whatever was asked for: a server may give less.
        newest = int(request.page_token or 5)
        self.fake.page_sizes.append(request.page_size)
        shown = [version for version in (newest, newest - 1) if version > 0]
        return ingest_pb2.ListDatasetVersionsResponse(
            datasets=[self.fake.dataset(version) for version in shown],
            next_page_token=str(newest - 2) if newest > 2 else "",
        )

    def ListDeadLetters(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        self.fake.letter_filters.append(request.filter)
        start = int(request.page_token or 0)
        shown = self.fake.letters[start : start + 2]
        rest = start + 2 < len(self.fake.letters)
        return dead_letter_pb2.ListDeadLettersResponse(
            dead_letters=shown, next_page_token=str(start + 2) if rest else ""
        )

    def GetDeadLetter(self, request: Any, context: Any) -> Any:
        for letter in self.fake.letters:
            if letter.id == request.id:
                return dead_letter_pb2.GetDeadLetterResponse(dead_letter=letter)
        return refuse(context, grpc.StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND", "no such letter")

    def ReplayDeadLetters(self, request: Any, context: Any) -> Any:
        self.fake.replays.append(request)
        if self.fake.away:
            self.fake.away -= 1
            refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "OUTBOX_FULL", "too many")
        if request.ids:
            return dead_letter_pb2.ReplayDeadLettersResponse(replayed=len(request.ids))
        last = request.page_token == "more"
        return dead_letter_pb2.ReplayDeadLettersResponse(
            replayed=2, skipped=1, next_page_token="" if last else "more"
        )

    def GetPipelineStats(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        count = len(self.fake.records)
        return ingest_pb2.GetPipelineStatsResponse(received=count, accepted=count, lag=0)


class Training(training_pb2_grpc.TrainingServiceServicer):
    def __init__(self, fake: FakeEverloop) -> None:
        self.fake = fake

    def StartTraining(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        self.fake.asked_to_train.append(request.request_id)
        return training_pb2.StartTrainingResponse(training=self.fake.progress[0])

    def GetTraining(self, request: Any, context: Any) -> Any:
        if len(self.fake.progress) > 1:
            self.fake.progress.pop(0)
        return training_pb2.GetTrainingResponse(training=self.fake.progress[0])

    def WatchTraining(self, request: Any, context: Any) -> Any:
        if request.id != "training-1":
            refuse(context, grpc.StatusCode.NOT_FOUND, "TRAINING_NOT_FOUND", "no such training")
        for position, state in enumerate(self.fake.progress):
            yield training_pb2.WatchTrainingResponse(training=state)
            if self.fake.away_after == state.trials_done:
                self.fake.away_after = -1
                self.fake.progress = self.fake.progress[position:]
                context.abort(grpc.StatusCode.UNAVAILABLE, "the trainer starts again")

    def CancelTraining(self, request: Any, context: Any) -> Any:
        self.fake.cancelled.append(request)
        return training_pb2.CancelTrainingResponse(training=self.fake.progress[0])

    def ListTrainings(self, request: Any, context: Any) -> Any:
        if request.pipeline not in ("", MODEL):
            return training_pb2.ListTrainingsResponse()
        return training_pb2.ListTrainingsResponse(trainings=self.fake.trainings)


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    def __init__(self, fake: FakeEverloop) -> None:
        self.fake = fake

    def ListModelVersions(self, request: Any, context: Any) -> Any:
        self.fake.asked_datasets.append(request.dataset_version)
        if request.model not in ("", MODEL):
            return registry_pb2.ListModelVersionsResponse()
        return registry_pb2.ListModelVersionsResponse(
            versions=[self.fake.model(2), self.fake.model(1)], mlflow_away=self.fake.mlflow_away
        )

    def GetModelVersion(self, request: Any, context: Any) -> Any:
        if request.version > 2:
            refuse(
                context, grpc.StatusCode.NOT_FOUND, "VERSION_NOT_FOUND", "flight-delays has no v9"
            )
        return registry_pb2.GetModelVersionResponse(version=self.fake.model(request.version or 2))

    def GetArtifacts(self, request: Any, context: Any) -> Any:
        for path, data in self.fake.artifacts:
            yield registry_pb2.GetArtifactsResponse(path=path, data=data)

    def ListProduction(self, request: Any, context: Any) -> Any:
        running = [
            rollout
            for rollout in self.fake.rollouts
            if rollout.state == registry_pb2.ROLLOUT_STATE_RUNNING
        ]
        return registry_pb2.ListProductionResponse(
            versions=[self.fake.model(2)],
            trials=[
                registry_pb2.Trial(
                    version=self.fake.model(rollout.candidate_version), rollout=rollout
                )
                for rollout in running
                if request.model in ("", rollout.model)
            ],
        )

    def WatchProduction(self, request: Any, context: Any) -> Any:
        yield registry_pb2.WatchProductionResponse()
        if request.model in ("", MODEL):
            yield registry_pb2.WatchProductionResponse(versions=[self.fake.model(1)])
            trials = self.ListProduction(request, context).trials
            yield registry_pb2.WatchProductionResponse(versions=[self.fake.model(2)], trials=trials)

    def ListRollouts(self, request: Any, context: Any) -> Any:
        return registry_pb2.ListRolloutsResponse(
            rollouts=[
                rollout for rollout in self.fake.rollouts if request.model in ("", rollout.model)
            ]
        )

    def GetRollout(self, request: Any, context: Any) -> Any:
        for rollout in self.fake.rollouts:
            if rollout.id == request.id:
                return registry_pb2.GetRolloutResponse(rollout=rollout)
        return refuse(context, grpc.StatusCode.NOT_FOUND, "ROLLOUT_NOT_FOUND", "no such rollout")

    def StartRollout(self, request: Any, context: Any) -> Any:
        self.fake.asked_of_rollouts.append(request)
        rollout = registry_pb2.Rollout(
            id="rollout-9",
            model=request.model,
            candidate_version=request.version,
            baseline_version=2,
        )
        return registry_pb2.StartRolloutResponse(rollout=rollout)

    def EndRollout(self, request: Any, context: Any) -> Any:
        self.fake.asked_of_rollouts.append(request)
        return registry_pb2.EndRolloutResponse(rollout=self.fake.rollouts[0])

    def ReportRollout(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("replicas report, users do not")

    def PromoteModelVersion(self, request: Any, context: Any) -> Any:
        self.fake.promoted.append(request)
        return registry_pb2.PromoteModelVersionResponse(version=self.fake.model(request.version))

    def ApproveModelVersion(self, request: Any, context: Any) -> Any:
        self.fake.ruled.append(request)
        return registry_pb2.ApproveModelVersionResponse(
            version=self._ruled(request, registry_pb2.STAGE_STAGING)
        )

    def RejectModelVersion(self, request: Any, context: Any) -> Any:
        self.fake.ruled.append(request)
        return registry_pb2.RejectModelVersionResponse(
            version=self._ruled(request, registry_pb2.STAGE_REJECTED)
        )

    def ArchiveModelVersion(self, request: Any, context: Any) -> Any:
        self.fake.ruled.append(request)
        return registry_pb2.ArchiveModelVersionResponse(
            version=self._ruled(request, registry_pb2.STAGE_ARCHIVED)
        )

    def _ruled(self, request: Any, stage: Any) -> registry_pb2.ModelVersion:
        version = self.fake.model(request.version)
        version.stage = stage
        return version

    def RollbackModel(self, request: Any, context: Any) -> Any:
        if request.model != MODEL:
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no such model")
        return registry_pb2.RollbackModelResponse(version=self.fake.model(1))

    def ListAuditEntries(self, request: Any, context: Any) -> Any:
        return registry_pb2.ListAuditEntriesResponse(
            entries=[entry for entry in self.fake.entries if request.model in ("", entry.model)]
        )

    def VerifyAudit(self, request: Any, context: Any) -> Any:
        self.fake.noted_heads.append(request.head)
        return self.fake.verified

    def GetLineage(self, request: Any, context: Any) -> Any:
        return registry_pb2.GetLineageResponse(
            version=self.fake.model(request.version),
            trained_event_id="trained-event",
            training_cause_id="retrain-event",
            audit=[
                registry_pb2.AuditEntry(action="promoted", actor="gates", cause_id="trained-event")
            ],
        )


def _warning() -> monitoring_pb2.EarlyWarning:
    return monitoring_pb2.EarlyWarning(
        chunk_id=f"{MODEL}/1/3",
        pipeline=MODEL,
        model_version=1,
        feature="temperature",
        seen_after=120,
        rows=1500,
    )


class Monitoring(monitoring_pb2_grpc.MonitoringServiceServicer):
    def ListChunks(self, request: Any, context: Any) -> Any:
        known(context, request.pipeline)
        chunks = []
        for index in (2, 1, 0):
            auc = 0.7 - 0.05 * index
            chunks.append(
                monitoring_pb2.Chunk(
                    id=f"{MODEL}/1/{index}",
                    pipeline=MODEL,
                    model_version=1,
                    index=index,
                    rows=5000,
                    alert=index == 2,
                    realised_performance=monitoring_pb2.Measurement(
                        measure="roc_auc", value=auc, lower=0.65, alert=auc < 0.65
                    ),
                    features=[
                        monitoring_pb2.FeatureDrift(
                            feature="temperature",
                            measurement=monitoring_pb2.Measurement(
                                measure="jensen_shannon", value=0.2
                            ),
                        )
                    ],
                )
            )
        return monitoring_pb2.ListChunksResponse(chunks=chunks)

    def ListDecisions(self, request: Any, context: Any) -> Any:
        decision = monitoring_pb2.Decision(
            id="d",
            pipeline=MODEL,
            model_version=1,
            action="retrain",
            reason="2 of 3 chunks alert",
            request_id="request-1",
            evidence=[
                monitoring_pb2.Evidence(
                    chunk_id=f"{MODEL}/1/2",
                    condition="realised_performance",
                    shown="roc_auc 0.6000 < 0.6500",
                    alert=True,
                    severity=1.67,
                )
            ],
        )
        return monitoring_pb2.ListDecisionsResponse(decisions=[decision])

    def ListEarlyWarnings(self, request: Any, context: Any) -> Any:
        return monitoring_pb2.ListEarlyWarningsResponse(early_warnings=[_warning()])

    def Watch(self, request: Any, context: Any) -> Any:
        decided = self.ListDecisions(request, context).decisions[0]
        yield monitoring_pb2.WatchResponse(decision=decided)
        yield monitoring_pb2.WatchResponse(early_warning=_warning())

    def GetPrediction(self, request: Any, context: Any) -> Any:
        if request.prediction_id == "unknown":
            refuse(context, grpc.StatusCode.NOT_FOUND, "PREDICTION_NOT_FOUND", "no such prediction")
        return monitoring_pb2.GetPredictionResponse(
            prediction_id=request.prediction_id,
            pipeline=MODEL,
            model_version=2,
            record_id="UA-1",
            label="true",
            score=0.8,
            event_id="logged-event",
            shadow=request.prediction_id == "shadow",
        )


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, fake: FakeEverloop) -> None:
        self.fake = fake

    def Predict(self, request: Any, context: Any) -> Any:
        if request.model != MODEL:
            refuse(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", "no model 'nothing'")
        ids = [
            row.fields["flight_id"].string_value if "flight_id" in row.fields else ""
            for row in request.rows
        ]
        if not self.fake.admit("grpc", ids):
            refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL", "broken on purpose")
        return inference_pb2.PredictResponse(
            model=MODEL,
            version=self.fake.version,
            predictions=[
                inference_pb2.Prediction(
                    prediction_id=f"p-{id_}", label="true", score=0.75, probabilities=[0.25, 0.75]
                )
                for id_ in ids
            ],
        )

    def GetModel(self, request: Any, context: Any) -> Any:
        return inference_pb2.GetModelResponse(
            model=inference_pb2.Model(name=MODEL, version=self.fake.version)
        )


class Tensors(grpc_service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, fake: FakeEverloop) -> None:
        self.fake = fake

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        answer = grpc_service_pb2.RepositoryIndexResponse()
        answer.models.add(name="another", version="9", state="READY")
        answer.models.add(name=MODEL, version=str(self.fake.version), state="READY")
        return answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        rows = request.inputs[0].shape[0]
        if not self.fake.admit("oip_grpc", [""] * rows):
            refuse(context, grpc.StatusCode.INTERNAL, "INTERNAL", "broken on purpose")
        answer = grpc_service_pb2.ModelInferResponse(
            model_name=MODEL, model_version=str(self.fake.version)
        )
        answer.outputs.add(name="probabilities", datatype="FP32", shape=[rows, 2])
        values = np.tile(np.array([0.25, 0.75], dtype="<f4"), rows)
        answer.raw_output_contents.append(values.tobytes())
        return answer


def _handler(fake: FakeEverloop) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = self._answer(body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, body: Any) -> tuple[int, Any]:
            if MODEL not in self.path:
                return 404, {"error": "no model 'nothing'", "reason": "MODEL_NOT_FOUND"}
            if self.path.endswith("/infer"):
                rows = body["inputs"][0]["shape"][0]
                if not fake.admit("oip_http", [""] * rows):
                    return 500, {"error": "broken on purpose", "reason": "INTERNAL"}
                output = {"name": "probabilities", "shape": [rows, 2], "data": [0.25, 0.75] * rows}
                return 200, {"model_version": str(fake.version), "outputs": [output]}
            ids = [row.get("flight_id", "") for row in body["rows"]]
            if not fake.admit("http", ids):
                return 500, {"error": "broken on purpose", "reason": "INTERNAL"}
            predictions = [
                {
                    "prediction_id": f"p-{id_}",
                    "label": "true",
                    "score": 0.75,
                    "probabilities": [0.25, 0.75],
                }
                for id_ in ids
            ]
            return 200, {"model": MODEL, "version": fake.version, "predictions": predictions}

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def fake() -> FakeEverloop:
    return FakeEverloop()


@pytest.fixture
def addresses(fake: FakeEverloop) -> Iterator[Addresses]:
    server = grpc.server(ThreadPoolExecutor(8))
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(Ingest(fake), server)  # type: ignore[abstract]
    training_pb2_grpc.add_TrainingServiceServicer_to_server(Training(fake), server)
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(fake), server)
    monitoring_pb2_grpc.add_MonitoringServiceServicer_to_server(Monitoring(), server)  # type: ignore[abstract]
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Inference(fake), server)  # type: ignore[abstract]
    grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Tensors(fake), server)  # type: ignore[abstract]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake))
    threading.Thread(target=http.serve_forever, args=(0.05,), daemon=True).start()
    everything = f"127.0.0.1:{port}"
    yield Addresses(
        ingest=everything,
        trainer=everything,
        registry=everything,
        monitor=everything,
        inference_http_url=f"http://127.0.0.1:{http.server_address[1]}",
        inference_grpc=everything,
    )
    http.shutdown()
    http.server_close()
    server.stop(None).wait()


@pytest.fixture
def everloop(addresses: Addresses) -> Iterator[Everloop]:
    with Everloop.connect(addresses=addresses, timeout=10) as client:
        yield client
