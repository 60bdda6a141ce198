"""The client: data in, predictions out, and everything that is known about both.

    with Everloop.connect() as everloop:
        everloop.push("flight-delays", records)
        everloop.cut("flight-delays")
        answer = everloop.predict("flight-delays", [row])
        everloop.trace(answer.predictions[0].id)

What the services answer is given back as their own Protobuf messages.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import grpc
import httpx

from everloop.addresses import Addresses
from everloop.errors import EverloopError
from everloop.push import Pushed, Rejection, batches
from everloop.rows import Row, Unsendable, plain
from everloop.wire import call, check_http, http_failure, stream
from everloop_contracts.artifacts import artifact_sha256, digests, write_files
from everloop_contracts.grpc_client import channel
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

__all__ = ["Everloop", "ModelVersions", "Prediction", "Predictions", "Pushed", "Rejection", "Trace"]

Item = TypeVar("Item")
_PAGE = 500


@dataclass(frozen=True)
class Prediction:
    """The answer for one row.

    Attributes:
        id: What `trace` takes.
        label: Predicted class; empty for regression.
        score: Predicted number, or the probability of the positive class.
        probabilities: Per class; empty for regression.
    """

    id: str
    label: str
    score: float
    probabilities: tuple[float, ...] = ()


@dataclass(frozen=True)
class Predictions:
    """The answers for a batch of rows, in order, and the model version that gave them."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]


class ModelVersions(list[registry_pb2.ModelVersion]):
    """Versions, newest first.

    Attributes:
        mlflow_away: Whether MLflow does not answer: they are as the gateway knows them, and cannot be moved.
    """

    def __init__(self, versions: Iterable[registry_pb2.ModelVersion], mlflow_away: bool) -> None:
        """Takes the versions, and whether MLflow does not answer."""
        super().__init__(versions)
        self.mlflow_away = mlflow_away


@dataclass(frozen=True)
class Trace:
    """The way from a prediction back to its data.

    Attributes:
        prediction: The prediction as it was logged, with its label if that has come.
        lineage: The model version, its run, its audit trail and the events behind it.
        dataset: The dataset version the model learned from.
    """

    prediction: monitoring_pb2.GetPredictionResponse
    lineage: registry_pb2.GetLineageResponse
    dataset: dataset_pb2.DatasetVersion


class Everloop:
    """A connection to one Everloop; may be used from several threads. Close it, or use it as a context."""

    def __init__(self, addresses: Addresses, *, timeout: float = 30.0) -> None:
        """Takes the addresses and the deadline of a call in seconds; connects when first used.

        Raises:
            EverloopError: reason INVALID_ADDRESS.
        """
        self.addresses = addresses
        self.timeout = timeout
        self._channels: dict[str, grpc.Channel] = {}
        try:
            self._http = httpx.Client(
                base_url=addresses.inference_http_url,
                headers=addresses.headers,
                timeout=timeout,
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise EverloopError(
                "INVALID_ADDRESS", f"'{addresses.inference_http_url}' is no address: {error}"
            ) from error

    @classmethod
    def connect(
        cls, home: Path | None = None, *, addresses: Addresses | None = None, timeout: float = 30.0
    ) -> Self:
        """Finds an Everloop (see `Addresses.discover`) unless told where it is.

        Raises:
            EverloopError: reason STACK_NOT_FOUND, INVALID_ADDRESS.
        """
        return cls(addresses or Addresses.discover(home), timeout=timeout)

    def close(self) -> None:
        """Closes every connection."""
        self._http.close()
        for channel_ in self._channels.values():
            channel_.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Data

    def push(
        self,
        pipeline: str,
        records: Iterable[Row | bytes],
        *,
        batch: int = 500,
        patience: float = 10.0,
        on_batch: Callable[[int], None] = lambda records: None,
        start: int = 0,
        push_id: str = "",
        result: Pushed | None = None,
    ) -> Pushed:
        """Pushes records: mappings, or JSON objects as bytes.

        A record that breaks the schema does not stop the others. Late labels are records that hold the record id and
        the target only.

        Args:
            pipeline: Name of the pipeline.
            records: Read as it goes; may be endless.
            batch: Records per call, or fewer: `BATCH_BYTES` bounds a call as well.
            patience: For so many seconds a call is repeated while ingest is unavailable; what was answered once is not
                taken twice.
            on_batch: Told how many more records have their answer.
            start: Position of the first of `records`, where those before it have their answer already.
            push_id: Names the push; a new one where empty. What went under it before, from a position where a batch
                ended, adds nothing when it is sent again.
            result: Counted on and returned; a new one where not given.

        Raises:
            EverloopError: The call failed; batches before it are in.
        """
        result = Pushed() if result is None else result
        name = push_id or str(uuid.uuid4())
        method = self._ingest().PushRecords
        for chunk in batches(records, batch, start):
            rejected = list(chunk.refused)
            if chunk.bodies:
                request = ingest_pb2.PushRecordsRequest(
                    pipeline=pipeline, records=chunk.bodies, request_id=f"{name}/{chunk.first}"
                )
                answer = call(method, request, self.timeout, patience)
                result.accepted += answer.accepted
                for item, position, body in zip(
                    answer.results, chunk.positions, chunk.bodies, strict=True
                ):
                    if not item.accepted:
                        rejected.append(
                            Rejection(position, item.reason, item.field, item.message, body)
                        )
            result.rejected += sorted(rejected, key=attrgetter("position"))
            on_batch(len(chunk))
        return result

    def cut(
        self, pipeline: str, *, request_id: str = "", timeout: float = 300.0
    ) -> dataset_pb2.DatasetVersion:
        """Cuts a dataset version of everything so far; a repeated `request_id` returns the first answer."""
        request = ingest_pb2.CutVersionRequest(
            pipeline=pipeline, request_id=request_id or str(uuid.uuid4())
        )
        return call(self._ingest().CutVersion, request, timeout).dataset

    def datasets(self, pipeline: str, *, limit: int = 50) -> list[dataset_pb2.DatasetVersion]:
        """Lists dataset versions, newest first."""
        method = self._ingest().ListDatasetVersions

        def page(size: int, token: str) -> tuple[Sequence[dataset_pb2.DatasetVersion], str]:
            request = ingest_pb2.ListDatasetVersionsRequest(
                pipeline=pipeline, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.datasets, answer.next_page_token

        return _pages(page, limit)

    def dataset(self, pipeline: str, version: int = 0) -> dataset_pb2.DatasetVersion:
        """Returns one dataset version; 0 is the newest."""
        request = ingest_pb2.GetDatasetVersionRequest(pipeline=pipeline, version=version)
        return call(self._ingest().GetDatasetVersion, request, self.timeout).dataset

    def release(
        self, pipeline: str, version: int, *, reason: str, actor: str = "", request_id: str = ""
    ) -> dataset_pb2.DatasetVersion:
        """Announces a dataset version that is in quarantine; a repeated `request_id` returns the first answer."""
        request = ingest_pb2.ReleaseVersionRequest(
            pipeline=pipeline,
            version=version,
            request_id=request_id or str(uuid.uuid4()),
            actor=actor,
            reason=reason,
        )
        return call(self._ingest().ReleaseVersion, request, self.timeout).dataset

    def erase(
        self,
        pipeline: str,
        record_ids: Sequence[str] = (),
        *,
        field: str = "",
        value: str = "",
        reason: str,
        actor: str = "",
        request_id: str = "",
        timeout: float = 300.0,
    ) -> dataset_pb2.DatasetVersion:
        """Cuts a version without the records with these ids, or with this value in a field.

        A repeated `request_id` returns the first answer. What earlier versions hold is not touched.
        """
        request = ingest_pb2.EraseRecordsRequest(
            pipeline=pipeline,
            record_ids=record_ids,
            field=field,
            value=value,
            request_id=request_id or str(uuid.uuid4()),
            actor=actor,
            reason=reason,
        )
        return call(self._ingest().EraseRecords, request, timeout).dataset

    def stats(self, pipeline: str) -> ingest_pb2.GetPipelineStatsResponse:
        """Returns the books of a pipeline: received, accepted, rejected by reason, lag."""
        request = ingest_pb2.GetPipelineStatsRequest(pipeline=pipeline)
        return call(self._ingest().GetPipelineStats, request, self.timeout)

    def dead_letters(
        self,
        pipeline: str,
        *,
        reason: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 50,
    ) -> list[dead_letter_pb2.DeadLetter]:
        """Lists records that were rejected, newest first and without their bodies.

        Args:
            pipeline: Name of the pipeline.
            reason: Only those with this reason code.
            since: Rejected at this time or later; with a zone, or local.
            until: Rejected before this time.
            limit: At most this many.
        """
        method = self._ingest().ListDeadLetters
        wanted = _letter_filter(reason, since, until)

        def page(size: int, token: str) -> tuple[Sequence[dead_letter_pb2.DeadLetter], str]:
            request = dead_letter_pb2.ListDeadLettersRequest(
                pipeline=pipeline, filter=wanted, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.dead_letters, answer.next_page_token

        return _pages(page, limit)

    def dead_letter(self, pipeline: str, id: str) -> dead_letter_pb2.DeadLetter:
        """Returns one rejected record as it came."""
        request = dead_letter_pb2.GetDeadLetterRequest(pipeline=pipeline, id=id)
        return call(self._ingest().GetDeadLetter, request, self.timeout).dead_letter

    def replay_dead_letters(
        self,
        pipeline: str,
        ids: Sequence[str] = (),
        *,
        reason: str = "",
        since: datetime | None = None,
        until: datetime | None = None,
        request_id: str = "",
        patience: float = 10.0,
        on_page: Callable[[int], None] = lambda records: None,
    ) -> tuple[int, int]:
        """Puts rejected records on the pipeline's topic again, each at most once whoever asks.

        Args:
            pipeline: Name of the pipeline.
            ids: Which; where none are named, all that fit the rest.
            reason: Only those with this reason code.
            since: Rejected at this time or later.
            until: Rejected before this time.
            request_id: The same again goes on where a call broke off; a new one where empty.
            patience: For so many seconds a call is repeated while ingest is unavailable.
            on_page: Told how many more were looked at.

        Returns:
            How many were replayed, and how many stay: replayed before, or too large still.
        """
        method = self._ingest().ReplayDeadLetters
        name = request_id or str(uuid.uuid4())
        parts = [list(ids[first : first + _PAGE]) for first in range(0, len(ids), _PAGE)] or [[]]
        replayed = skipped = number = 0
        for part in parts:
            token = ""
            while True:
                request = dead_letter_pb2.ReplayDeadLettersRequest(
                    pipeline=pipeline,
                    request_id=f"{name}/{number}",
                    ids=part,
                    filter=None if part else _letter_filter(reason, since, until),
                    page_size=_PAGE,
                    page_token=token,
                )
                answer = call(method, request, self.timeout, patience)
                replayed, skipped = replayed + answer.replayed, skipped + answer.skipped
                number, token = number + 1, answer.next_page_token
                on_page(answer.replayed + answer.skipped)
                if not token:
                    break
        return replayed, skipped

    # Predictions

    def predict(self, model: str, rows: Sequence[Row], *, http: bool = False) -> Predictions:
        """Predicts rows with the Production version, over gRPC or HTTP.

        Args:
            model: Name of the model, which is the name of its pipeline.
            rows: Field name to value, as the pipeline's schema names them. The record id is optional; with it, late
                labels find the prediction.
            http: Use HTTP.

        Raises:
            EverloopError: Unknown model, or a row that does not fit it (the message names the field).
        """
        sendable = _sendable(rows)
        if http:
            return self._predict_http(model, sendable)
        request = inference_pb2.PredictRequest(model=model)
        for row in sendable:
            request.rows.add().update(row)
        answer = call(self._inference().Predict, request, self.timeout)
        return Predictions(
            answer.model,
            answer.version,
            tuple(
                Prediction(item.prediction_id, item.label, item.score, tuple(item.probabilities))
                for item in answer.predictions
            ),
        )

    def _predict_http(self, model: str, rows: Sequence[Row]) -> Predictions:
        try:
            answer = self._http.post(
                f"/v1/models/{quote(model, safe='')}:predict", json={"rows": rows}
            )
        except httpx.HTTPError as error:
            raise http_failure(error) from error
        check_http(answer)
        try:
            body = answer.json()
            return Predictions(
                body["model"],
                int(body["version"]),
                tuple(
                    Prediction(
                        item["prediction_id"],
                        item.get("label", ""),
                        float(item["score"]),
                        tuple(item.get("probabilities", ())),
                    )
                    for item in body["predictions"]
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EverloopError(
                "UNEXPECTED_ANSWER",
                f"{answer.url} does not answer as Everloop does: {answer.text[:100]}",
                "check the address",
            ) from error

    def served(self, model: str) -> inference_pb2.Model:
        """Describes the version of a model that answers now, and what a row must hold."""
        return call(
            self._inference().GetModel, inference_pb2.GetModelRequest(model=model), self.timeout
        ).model

    def serving(self, model: str) -> list[int]:
        """Versions of a model that answer now, that on trial last; none where the model is unknown. Wakes no pool."""
        request = grpc_service_pb2.RepositoryIndexRequest()
        index = call(self._open_inference().RepositoryIndex, request, self.timeout)
        return [int(entry.version) for entry in index.models if entry.name == model]

    # Models

    def models(self, model: str = "", *, dataset: int = 0, limit: int = 50) -> ModelVersions:
        """Lists versions of a model, or of all, newest first; with `dataset`, those that learned from that version."""
        method = self._registry().ListModelVersions
        away = False

        def page(size: int, token: str) -> tuple[Sequence[registry_pb2.ModelVersion], str]:
            nonlocal away
            request = registry_pb2.ListModelVersionsRequest(
                model=model, dataset_version=dataset, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            away = answer.mlflow_away
            return answer.versions, answer.next_page_token

        found = _pages(page, limit)
        return ModelVersions(found, away)

    def model(self, model: str, version: int = 0) -> registry_pb2.ModelVersion:
        """Returns one version; 0 is the one in Production."""
        request = registry_pb2.GetModelVersionRequest(model=model, version=version)
        return call(self._registry().GetModelVersion, request, self.timeout).version

    def download(self, version: registry_pb2.ModelVersion, folder: Path) -> None:
        """Writes the files of a version below a folder, and holds them against what the registry knows of them.

        Raises:
            EverloopError: The gateway cannot have them now; or reason CHECKSUM_MISMATCH.
        """
        request = registry_pb2.GetArtifactsRequest(model=version.model, version=version.version)
        with contextlib.closing(stream(self._registry().GetArtifacts, request)) as parts:
            write_files(parts, folder)
        if version.artifact_sha256 not in ("", artifact_sha256(digests(folder))):
            raise EverloopError(
                "CHECKSUM_MISMATCH",
                f"the files of {version.model} version {version.version} are not those that were registered",
            )

    def production(self, model: str = "") -> list[registry_pb2.ModelVersion]:
        """Returns the Production version of a model, or of all."""
        request = registry_pb2.ListProductionRequest(model=model)
        return list(call(self._registry().ListProduction, request, self.timeout).versions)

    def promote(
        self, model: str, version: int, *, reason: str = "", actor: str = "", etag: str = ""
    ) -> registry_pb2.ModelVersion:
        """Moves a version to Production; with an `etag`, only if nobody changed the model since."""
        request = registry_pb2.PromoteModelVersionRequest(
            model=model, version=version, etag=etag, actor=actor, reason=reason
        )
        return self._moved(self._registry().PromoteModelVersion, request)

    def approve(
        self, model: str, version: int, *, reason: str = "", actor: str = "", etag: str = ""
    ) -> registry_pb2.ModelVersion:
        """Lets a version in Staging go on trial or into Production, as its pipeline says; `etag` as for `promote`."""
        request = registry_pb2.ApproveModelVersionRequest(
            model=model, version=version, etag=etag, actor=actor, reason=reason
        )
        return self._moved(self._registry().ApproveModelVersion, request)

    def reject(
        self, model: str, version: int, *, reason: str = "", actor: str = "", etag: str = ""
    ) -> registry_pb2.ModelVersion:
        """Rejects a version in Staging for good; with an `etag`, only if nobody changed the model since."""
        request = registry_pb2.RejectModelVersionRequest(
            model=model, version=version, etag=etag, actor=actor, reason=reason
        )
        return self._moved(self._registry().RejectModelVersion, request)

    def archive(
        self, model: str, version: int, *, reason: str = "", actor: str = "", etag: str = ""
    ) -> registry_pb2.ModelVersion:
        """Puts a version in Staging away; with an `etag`, only if nobody changed the model since."""
        request = registry_pb2.ArchiveModelVersionRequest(
            model=model, version=version, etag=etag, actor=actor, reason=reason
        )
        return self._moved(self._registry().ArchiveModelVersion, request)

    def rollback(
        self, model: str, *, reason: str = "", actor: str = ""
    ) -> registry_pb2.ModelVersion:
        """Puts the previous Production version back."""
        request = registry_pb2.RollbackModelRequest(model=model, actor=actor, reason=reason)
        return self._moved(self._registry().RollbackModel, request)

    def _moved(self, method: Any, request: Any) -> registry_pb2.ModelVersion:
        """Asks for a move under a name of its own, so that a repeat moves nothing twice."""
        request.request_id = str(uuid.uuid4())
        moved: registry_pb2.ModelVersion = call(method, request, self.timeout).version
        return moved

    def lineage(self, model: str, version: int) -> registry_pb2.GetLineageResponse:
        """Follows a model version back to its run, its dataset version and its cause."""
        request = registry_pb2.GetLineageRequest(model=model, version=version)
        return call(self._registry().GetLineage, request, self.timeout)

    def audit(self, model: str = "", *, limit: int = 50) -> list[registry_pb2.AuditEntry]:
        """Lists what was done to a model, or to all, newest first."""
        method = self._registry().ListAuditEntries

        def page(size: int, token: str) -> tuple[Sequence[registry_pb2.AuditEntry], str]:
            request = registry_pb2.ListAuditEntriesRequest(
                model=model, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.entries, answer.next_page_token

        return _pages(page, limit)

    def verify_audit(self, head: str = "") -> registry_pb2.VerifyAuditResponse:
        """Follows the audit trail's hash chain; `head` is a link that it must hold, of an earlier answer."""
        request = registry_pb2.VerifyAuditRequest(head=head)
        return call(self._registry().VerifyAudit, request, self.timeout)

    # Rollouts

    def trials(self, model: str = "") -> list[registry_pb2.Trial]:
        """Returns the versions that are on trial beside the one in Production; at most one for each model."""
        request = registry_pb2.ListProductionRequest(model=model)
        return list(call(self._registry().ListProduction, request, self.timeout).trials)

    def watch_production(
        self, model: str = "", *, patience: float = 60.0
    ) -> Iterator[registry_pb2.WatchProductionResponse]:
        """Yields what should serve, of a model or of all: at once, and again whenever that changes.

        It ends when the registry gateway is stopped.

        Args:
            model: Name of the model; empty for all.
            patience: For so many seconds a gateway that is away is asked again.
        """
        request = registry_pb2.WatchProductionRequest(model=model)
        yield from stream(self._registry().WatchProduction, request, patience)

    def rollouts(self, model: str = "", *, limit: int = 50) -> list[registry_pb2.Rollout]:
        """Lists rollouts of a model, or of all, newest first, with what both versions of each did."""
        method = self._registry().ListRollouts

        def page(size: int, token: str) -> tuple[Sequence[registry_pb2.Rollout], str]:
            request = registry_pb2.ListRolloutsRequest(
                model=model, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.rollouts, answer.next_page_token

        return _pages(page, limit)

    def rollout(self, rollout_id: str) -> registry_pb2.Rollout:
        """Returns one rollout with what both versions have done so far."""
        request = registry_pb2.GetRolloutRequest(id=rollout_id)
        return call(self._registry().GetRollout, request, self.timeout).rollout

    def start_rollout(
        self,
        model: str,
        version: int,
        *,
        plan: registry_pb2.RolloutPlan | None = None,
        reason: str = "",
        actor: str = "",
    ) -> registry_pb2.Rollout:
        """Puts a version in Staging on trial beside the Production version; without a plan as its pipeline says."""
        request = registry_pb2.StartRolloutRequest(
            model=model,
            version=version,
            plan=plan,
            request_id=str(uuid.uuid4()),
            actor=actor,
            reason=reason,
        )
        return call(self._registry().StartRollout, request, self.timeout).rollout

    def end_rollout(
        self, rollout_id: str, *, promote: bool, reason: str = "", actor: str = ""
    ) -> registry_pb2.Rollout:
        """Ends a rollout: promotes its version, or takes it back."""
        request = registry_pb2.EndRolloutRequest(
            id=rollout_id,
            promote=promote,
            request_id=str(uuid.uuid4()),
            actor=actor,
            reason=reason,
        )
        return call(self._registry().EndRollout, request, self.timeout).rollout

    # Trainings

    def train(
        self, pipeline: str, *, request_id: str = "", timeout: float = 300.0
    ) -> training_pb2.Training:
        """Asks for a training on the newest data, cut for it; a repeated `request_id` returns the first answer."""
        request = training_pb2.StartTrainingRequest(
            pipeline=pipeline, request_id=request_id or str(uuid.uuid4())
        )
        return call(self._training().StartTraining, request, timeout).training

    def training(self, training_id: str, *, patience: float = 0.0) -> training_pb2.Training:
        """Returns one training; for `patience` seconds a trainer that is away is asked again."""
        request = training_pb2.GetTrainingRequest(id=training_id)
        return call(self._training().GetTraining, request, self.timeout, patience).training

    def watch_training(
        self, training_id: str, *, patience: float = 60.0
    ) -> Iterator[training_pb2.Training]:
        """Yields a training whenever it changes, until it has ended.

        Args:
            training_id: Id of the training.
            patience: For so many seconds a trainer that is away is asked again.
        """
        request = training_pb2.WatchTrainingRequest(id=training_id)
        for answer in stream(self._training().WatchTraining, request, patience):
            yield answer.training

    def cancel_training(
        self, training_id: str, *, reason: str = "", actor: str = ""
    ) -> training_pb2.Training:
        """Cancels a training; one that runs has ended once its trials have stopped. A repeat changes nothing."""
        request = training_pb2.CancelTrainingRequest(id=training_id, actor=actor, reason=reason)
        return call(self._training().CancelTraining, request, self.timeout).training

    def trainings(self, pipeline: str = "", *, limit: int = 50) -> list[training_pb2.Training]:
        """Lists trainings of a pipeline, or of all, newest first."""
        method = self._training().ListTrainings

        def page(size: int, token: str) -> tuple[Sequence[training_pb2.Training], str]:
            request = training_pb2.ListTrainingsRequest(
                pipeline=pipeline, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.trainings, answer.next_page_token

        return _pages(page, limit)

    # What is watched

    def chunks(
        self, pipeline: str, *, version: int = 0, limit: int = 50
    ) -> list[monitoring_pb2.Chunk]:
        """Lists evaluated chunks of predictions, newest first."""
        method = self._monitoring().ListChunks

        def page(size: int, token: str) -> tuple[Sequence[monitoring_pb2.Chunk], str]:
            request = monitoring_pb2.ListChunksRequest(
                pipeline=pipeline, model_version=version, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.chunks, answer.next_page_token

        return _pages(page, limit)

    def decisions(self, pipeline: str, *, limit: int = 50) -> list[monitoring_pb2.Decision]:
        """Lists what the retrain policy decided, newest first."""
        method = self._monitoring().ListDecisions

        def page(size: int, token: str) -> tuple[Sequence[monitoring_pb2.Decision], str]:
            request = monitoring_pb2.ListDecisionsRequest(
                pipeline=pipeline, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.decisions, answer.next_page_token

        return _pages(page, limit)

    def early_warnings(
        self, pipeline: str, *, limit: int = 50
    ) -> list[monitoring_pb2.EarlyWarning]:
        """Lists what changed in chunks that were not yet full, newest first."""
        method = self._monitoring().ListEarlyWarnings

        def page(size: int, token: str) -> tuple[Sequence[monitoring_pb2.EarlyWarning], str]:
            request = monitoring_pb2.ListEarlyWarningsRequest(
                pipeline=pipeline, page_size=size, page_token=token
            )
            answer = call(method, request, self.timeout)
            return answer.early_warnings, answer.next_page_token

        return _pages(page, limit)

    def watch_decisions(self, pipeline: str) -> Iterator[monitoring_pb2.WatchResponse]:
        """Follows what the monitor decides and warns of, from now on, until the iterator is closed."""
        request = monitoring_pb2.WatchRequest(pipeline=pipeline)
        yield from stream(self._monitoring().Watch, request)

    def logged(self, prediction_id: str) -> monitoring_pb2.GetPredictionResponse:
        """Finds a logged prediction; it is there a moment after the answer, when the log has arrived."""
        request = monitoring_pb2.GetPredictionRequest(prediction_id=prediction_id)
        return call(self._monitoring().GetPrediction, request, self.timeout)

    def trace(self, prediction_id: str) -> Trace:
        """Follows a prediction back to the rows that taught its model."""
        prediction = self.logged(prediction_id)
        lineage = self.lineage(prediction.pipeline, prediction.model_version)
        dataset = self.dataset(prediction.pipeline, lineage.version.dataset_version)
        return Trace(prediction, lineage, dataset)

    # Connections

    def _channel(self, address: str) -> grpc.Channel:
        # Two threads may both make one; setdefault keeps the first and a channel without calls costs nothing.
        return self._channels.get(address) or self._channels.setdefault(
            address, channel(address, self.addresses.token)
        )

    def _ingest(self) -> ingest_pb2_grpc.IngestServiceStub:
        return ingest_pb2_grpc.IngestServiceStub(self._channel(self.addresses.ingest))

    def _training(self) -> training_pb2_grpc.TrainingServiceStub:
        return training_pb2_grpc.TrainingServiceStub(self._channel(self.addresses.trainer))

    def _registry(self) -> registry_pb2_grpc.RegistryServiceStub:
        return registry_pb2_grpc.RegistryServiceStub(self._channel(self.addresses.registry))

    def _monitoring(self) -> monitoring_pb2_grpc.MonitoringServiceStub:
        return monitoring_pb2_grpc.MonitoringServiceStub(self._channel(self.addresses.monitor))

    def _inference(self) -> inference_pb2_grpc.InferenceServiceStub:
        return inference_pb2_grpc.InferenceServiceStub(self._channel(self.addresses.inference_grpc))

    def _open_inference(self) -> grpc_service_pb2_grpc.GRPCInferenceServiceStub:
        return grpc_service_pb2_grpc.GRPCInferenceServiceStub(
            self._channel(self.addresses.inference_grpc)
        )


def _sendable(rows: Sequence[Row]) -> list[dict[str, Any]]:
    found = []
    for number, row in enumerate(rows, start=1):
        try:
            found.append(plain(row))
        except Unsendable as error:
            raise EverloopError(
                "INVALID_ROW",
                f"row {number}: {error.field}: {error}",
                "values are text, numbers, true, false, null and times",
                {"field": error.field},
            ) from error
    return found


def _letter_filter(
    reason: str, since: datetime | None, until: datetime | None
) -> dead_letter_pb2.DeadLetterFilter:
    found = dead_letter_pb2.DeadLetterFilter(reason=reason)
    for time, field in ((since, found.start_time), (until, found.end_time)):
        if time is not None:
            field.FromDatetime(time.astimezone(UTC))
    return found


def _pages(page: Callable[[int, str], tuple[Sequence[Item], str]], limit: int) -> list[Item]:
    """Reads pages until `limit` items are there or no page is left."""
    found: list[Item] = []
    token = ""
    while len(found) < limit:
        items, token = page(min(limit - len(found), _PAGE), token)
        found += items
        if not token:
            break
    return found[:limit]
