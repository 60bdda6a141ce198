"""gRPC in: `everloop.registry.v1.RegistryService`."""

from __future__ import annotations

import grpc

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.convert import audit_message, version_message
from everloop_registry_gateway.domain import Move, Request
from everloop_registry_gateway.promote import Promoter, find
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.paging import page

__all__ = ["RegistryServicer"]

LONGEST_ID = 200


class RegistryServicer(registry_pb2_grpc.RegistryServiceServicer):
    """Reads from the gateway's database, also while MLflow is away; moves through the promoter."""

    def __init__(self, database: Database, promoter: Promoter) -> None:
        """Takes the gateway's database and what promotes."""
        self._database = database
        self._promoter = promoter

    def ListModelVersions(
        self, request: registry_pb2.ListModelVersionsRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListModelVersionsResponse:
        """Lists versions, newest first."""
        before, size = page(request.page_token, request.page_size)
        with self._database.read() as connection:
            versions, following = Store(connection).page_of_versions(request.model, before, size)
        return registry_pb2.ListModelVersionsResponse(
            versions=map(version_message, versions),
            next_page_token=following,
        )

    def GetModelVersion(
        self, request: registry_pb2.GetModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetModelVersionResponse:
        """Returns one version."""
        _require(model=request.model)
        _not_negative("version", request.version)
        with self._database.read() as connection:
            version = find(Store(connection), request.model, request.version)
        return registry_pb2.GetModelVersionResponse(version=version_message(version))

    def ListProduction(
        self, request: registry_pb2.ListProductionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListProductionResponse:
        """Returns what should serve."""
        with self._database.read() as connection:
            versions = Store(connection).production(request.model)
        return registry_pb2.ListProductionResponse(versions=map(version_message, versions))

    def PromoteModelVersion(
        self, request: registry_pb2.PromoteModelVersionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.PromoteModelVersionResponse:
        """Moves a version to Production."""
        _require(model=request.model)
        _not_negative("version", request.version)
        if not request.version:
            raise _invalid("version", "name the version to promote, 1 or higher")
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

    def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: grpc.ServicerContext
    ) -> registry_pb2.GetLineageResponse:
        """Follows a version back to what caused it."""
        _require(model=request.model)
        _not_negative("version", request.version)
        with self._database.read() as connection:
            store = Store(connection)
            version = find(store, request.model, request.version)
            trail = store.trail(version.model, version.version)
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
            entries, following = Store(connection).page_of_audit(request.model, before, size)
        return registry_pb2.ListAuditEntriesResponse(
            entries=map(audit_message, entries), next_page_token=following
        )


def _invalid(field: str, message: str) -> EverloopError:
    return EverloopError(Kind.INVALID, "INVALID_ARGUMENT", f"{field}: {message}", field=field)


def _require(**fields: str) -> None:
    for field, value in fields.items():
        if not value:
            raise _invalid(field, "must not be empty")


def _not_negative(field: str, value: int) -> None:
    if value < 0:
        raise _invalid(field, "must not be negative")


def _request_id(value: str) -> str:
    if len(value) > LONGEST_ID:
        raise _invalid("request_id", f"must not be longer than {LONGEST_ID} characters")
    return value
