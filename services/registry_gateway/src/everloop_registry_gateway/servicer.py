"""gRPC in: `everloop.registry.v1.RegistryService`."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.approve import Approvals
from everloop_registry_gateway.artifacts import Artifacts
from everloop_registry_gateway.convert import (
    ROLLOUT_STATES,
    audit_message,
    invalid,
    plan_of,
    rollout_message,
    totals_of,
    trial_message,
    version_message,
)
from everloop_registry_gateway.domain import Act, Move, Request, RolloutReport, Ruling
from everloop_registry_gateway.observe import Observer
from everloop_registry_gateway.promote import Promoter, find
from everloop_registry_gateway.rollout import EndRequest, Rollouts, StartRequest, find_rollout
from everloop_registry_gateway.watch import ProductionWatch
from everloop_runtime.database import Database
from everloop_runtime.paging import page

__all__ = ["RegistryServicer"]

LONGEST_ID = 200


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Reads from the gateway's database, also while MLflow is away; moves through the promoter."""

    def __init__(
        self,
        database: Database,
        promoter: Promoter,
        approvals: Approvals,
        rollouts: Rollouts,
        observer: Observer,
        artifacts: Artifacts,
        watch: ProductionWatch,
        send_seconds: float = 120.0,
    ) -> None:
        """Takes the gateway's database, and what does the work: moves, rulings, rollouts, their reports, files, news.

        A replica that has not taken the files of a version after `send_seconds` is cut off.
        """
        self._database = database
        self._promoter = promoter
        self._approvals = approvals
        self._rollouts = rollouts
        self._observer = observer
        self._artifacts = artifacts
        self._watch = watch
        self._send_seconds = send_seconds

    def ListModelVersions(
        self, request: registry_pb2.ListModelVersionsRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListModelVersionsResponse:
        """Lists versions, newest first."""
        _not_negative("dataset_version", request.dataset_version)
        if request.dataset_version:
            _require(model=request.model)
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            versions, following = Store(connection).page_of_versions(
                request.model, before, size, request.dataset_version
            )
        return registry_pb2.ListModelVersionsResponse(
            versions=map(version_message, versions),
            next_page_token=following,
            mlflow_away=self._promoter.registry_away,
        )

    def GetModelVersion(
        self, request: registry_pb2.GetModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetModelVersionResponse:
        """Returns one version."""
        _require(model=request.model)
        _not_negative("version", request.version)
        with self._database.read() as connection:
            version = find(Store(connection), request.model, request.version)
        return registry_pb2.GetModelVersionResponse(
            version=version_message(version), mlflow_away=self._promoter.registry_away
        )

    def ListProduction(
        self, request: registry_pb2.ListProductionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListProductionResponse:
        """Returns what should serve."""
        with self._database.read() as connection:
            versions, trials = RolloutStore(connection).served(request.model)
        return registry_pb2.ListProductionResponse(
            versions=map(version_message, versions),
            trials=[trial_message(version, rollout) for version, rollout in trials],
        )

    def WatchProduction(
        self, request: registry_pb2.WatchProductionRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.WatchProductionResponse]:
        """Streams what should serve."""
        wake = threading.Event()
        if not context.add_callback(wake.set):
            return
        for served in self._watch.changes(request.model, wake, context.is_active):
            yield registry_pb2.WatchProductionResponse(
                versions=map(version_message, served.versions),
                trials=[trial_message(version, rollout) for version, rollout in served.trials],
            )

    def GetArtifacts(
        self, request: registry_pb2.GetArtifactsRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.GetArtifactsResponse]:
        """Hands out the files of a version."""
        _require(model=request.model)
        _not_negative("version", request.version)
        if not request.version:
            raise invalid("version", "name the version whose files are wanted, 1 or higher")
        with self._database.read() as connection:
            version = find(Store(connection), request.model, request.version)
        # What is sent waits for who takes it, for ever if need be: the worker is needed again.
        limit = threading.Timer(self._send_seconds, context.cancel)
        limit.daemon = True
        limit.start()
        try:
            for path, data in self._artifacts.parts(version):
                yield registry_pb2.GetArtifactsResponse(path=path, data=data)
        finally:
            limit.cancel()

    def PromoteModelVersion(
        self, request: registry_pb2.PromoteModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.PromoteModelVersionResponse:
        """Moves a version to Production."""
        _require(model=request.model)
        _not_negative("version", request.version)
        if not request.version:
            raise invalid("version", "name the version to promote, 1 or higher")
        version = self._promoter.move(
            Request(
                move=Move.PROMOTION,
                model=request.model,
                version=request.version,
                etag=request.etag,
                request_id=_request_id(request.request_id),
                actor=request.actor or "unknown",
                reason=request.reason,
            )
        )
        return registry_pb2.PromoteModelVersionResponse(version=version_message(version))

    def RollbackModel(
        self, request: registry_pb2.RollbackModelRequest, context: grpc.ServicerContext
    ) -> registry_pb2.RollbackModelResponse:
        """Puts the previous Production version back."""
        _require(model=request.model)
        version = self._promoter.move(
            Request(
                move=Move.ROLLBACK,
                model=request.model,
                request_id=_request_id(request.request_id),
                actor=request.actor or "unknown",
                reason=request.reason,
            )
        )
        return registry_pb2.RollbackModelResponse(version=version_message(version))

    def ApproveModelVersion(
        self, request: registry_pb2.ApproveModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ApproveModelVersionResponse:
        """Lets a version in Staging go its way."""
        version = self._approvals.rule(_ruling(Act.APPROVE, request))
        return registry_pb2.ApproveModelVersionResponse(version=version_message(version))

    def RejectModelVersion(
        self, request: registry_pb2.RejectModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.RejectModelVersionResponse:
        """Rejects a version in Staging."""
        version = self._approvals.rule(_ruling(Act.REJECT, request))
        return registry_pb2.RejectModelVersionResponse(version=version_message(version))

    def ArchiveModelVersion(
        self, request: registry_pb2.ArchiveModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ArchiveModelVersionResponse:
        """Puts a version in Staging away."""
        version = self._approvals.rule(_ruling(Act.ARCHIVE, request))
        return registry_pb2.ArchiveModelVersionResponse(version=version_message(version))

    def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetLineageResponse:
        """Follows a version back to what caused it."""
        _require(model=request.model)
        _not_negative("version", request.version)
        with self._database.read() as connection:
            version = find(Store(connection), request.model, request.version)
            trail = Trail(connection).of_version(version.model, version.version)
        return registry_pb2.GetLineageResponse(
            version=version_message(version),
            trained_event_id=version.trained_event_id,
            training_cause_id=version.training_cause_id,
            audit=map(audit_message, trail),
        )

    def ListAuditEntries(
        self, request: registry_pb2.ListAuditEntriesRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListAuditEntriesResponse:
        """Lists what was done, newest first."""
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            entries, following = Trail(connection).page(request.model, before, size)
        return registry_pb2.ListAuditEntriesResponse(
            entries=map(audit_message, entries), next_page_token=following
        )

    def VerifyAudit(
        self, request: registry_pb2.VerifyAuditRequest, context: grpc.ServicerContext
    ) -> registry_pb2.VerifyAuditResponse:
        """Follows the audit trail's hash chain."""
        with self._database.read() as connection:
            found = Trail(connection).verify(request.head)
        return registry_pb2.VerifyAuditResponse(
            intact=not found.problem,
            entries=found.entries,
            head=found.head,
            broken_entry=found.broken,
            problem=found.problem,
        )

    def StartRollout(
        self, request: registry_pb2.StartRolloutRequest, context: grpc.ServicerContext
    ) -> registry_pb2.StartRolloutResponse:
        """Puts a version on trial."""
        _require(model=request.model)
        _not_negative("version", request.version)
        if not request.version:
            raise invalid("version", "name the version to try, 1 or higher")
        rollout = self._rollouts.start(
            StartRequest(
                model=request.model,
                version=request.version,
                plan=plan_of(request.plan) if request.HasField("plan") else None,
                request_id=_request_id(request.request_id),
                actor=request.actor or "unknown",
                reason=request.reason,
            )
        )
        return registry_pb2.StartRolloutResponse(rollout=rollout_message(rollout))

    def GetRollout(
        self, request: registry_pb2.GetRolloutRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetRolloutResponse:
        """Returns one rollout with what its versions have done so far."""
        _require(id=request.id)
        with self._database.read() as connection:
            rollout = find_rollout(RolloutStore(connection), request.id)
        return registry_pb2.GetRolloutResponse(rollout=rollout_message(rollout))

    def ListRollouts(
        self, request: registry_pb2.ListRolloutsRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListRolloutsResponse:
        """Lists rollouts, newest first."""
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            rollouts, following = RolloutStore(connection).page(request.model, before, size)
        return registry_pb2.ListRolloutsResponse(
            rollouts=map(rollout_message, rollouts), next_page_token=following
        )

    def EndRollout(
        self, request: registry_pb2.EndRolloutRequest, context: grpc.ServicerContext
    ) -> registry_pb2.EndRolloutResponse:
        """Promotes the candidate of a rollout, or takes it back."""
        _require(id=request.id)
        rollout = self._rollouts.end(
            EndRequest(
                rollout_id=request.id,
                promote=request.promote,
                request_id=_request_id(request.request_id),
                actor=request.actor or "unknown",
                reason=request.reason,
            )
        )
        return registry_pb2.EndRolloutResponse(rollout=rollout_message(rollout))

    def ReportRollout(
        self, request: registry_pb2.ReportRolloutRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ReportRolloutResponse:
        """Takes what one replica has seen of a rollout."""
        _require(id=request.id, replica=request.replica)
        if len(request.replica) > LONGEST_ID:
            raise invalid("replica", f"must not be longer than {LONGEST_ID} characters")
        _not_negative("sequence", request.sequence)
        state = self._observer.report(
            RolloutReport(
                rollout_id=request.id,
                replica=request.replica,
                sequence=request.sequence,
                candidate=totals_of("candidate", request.candidate),
                baseline=totals_of("baseline", request.baseline),
                failure=request.failure,
            )
        )
        return registry_pb2.ReportRolloutResponse(state=ROLLOUT_STATES[state])


def _ruling(
    act: Act,
    request: registry_pb2.ApproveModelVersionRequest
    | registry_pb2.RejectModelVersionRequest
    | registry_pb2.ArchiveModelVersionRequest,
) -> Ruling:
    _require(model=request.model)
    _not_negative("version", request.version)
    if not request.version:
        raise invalid("version", f"name the version to {act}, 1 or higher")
    return Ruling(
        act=act,
        model=request.model,
        version=request.version,
        etag=request.etag,
        request_id=_request_id(request.request_id),
        actor=request.actor or "unknown",
        reason=request.reason,
    )


def _require(**fields: str) -> None:
    for field, value in fields.items():
        if not value:
            raise invalid(field, "must not be empty")


def _not_negative(field: str, value: int) -> None:
    if value < 0:
        raise invalid(field, "must not be negative")


def _request_id(value: str) -> str:
    if len(value) > LONGEST_ID:
        raise invalid("request_id", f"must not be longer than {LONGEST_ID} characters")
    return value
