"""Between the contract's messages and the domain."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.everloop.training.v1 import events_pb2, training_pb2
from everloop_registry_gateway.domain import AuditEntry, Candidate, ModelVersion, Stage
from everloop_runtime.events import Event

__all__ = ["audit_message", "candidate_of", "version_message"]

STAGES = {
    Stage.NONE: registry_pb2.STAGE_NONE,
    Stage.STAGING: registry_pb2.STAGE_STAGING,
    Stage.PRODUCTION: registry_pb2.STAGE_PRODUCTION,
    Stage.ARCHIVED: registry_pb2.STAGE_ARCHIVED,
    Stage.REJECTED: registry_pb2.STAGE_REJECTED,
}


def candidate_of(event: Event, trained: events_pb2.ModelTrained) -> Candidate:
    """The candidate that a ModelTrained event announces."""
    return Candidate(
        model=trained.pipeline,
        training_id=trained.training_id,
        run_id=trained.run_id,
        model_uri=trained.model_uri,
        onnx_sha256=trained.onnx_sha256,
        family=trained.family,
        metrics=dict(trained.metrics),
        dataset_version=trained.dataset_version,
        dataset_tag=trained.dataset_tag,
        cause=training_pb2.Cause.Name(trained.cause),
        baseline_version=trained.baseline_version,
        baseline_metrics=dict(trained.baseline_metrics),
        export_difference=trained.export_difference,
        event_id=event.id,
        cause_id=event.cause,
    )


def version_message(version: ModelVersion) -> registry_pb2.ModelVersion:
    """A version as the contract shows it."""
    return registry_pb2.ModelVersion(
        model=version.model,
        version=version.version,
        stage=STAGES[version.stage],
        run_id=version.run_id,
        model_uri=version.model_uri,
        onnx_sha256=version.onnx_sha256,
        family=version.family,
        metrics=version.metrics,
        dataset_version=version.dataset_version,
        dataset_tag=version.dataset_tag,
        cause=training_pb2.Cause.Value(version.cause),
        gates=[
            registry_pb2.GateResult(
                gate=gate.gate, passed=gate.passed, evidence=gate.evidence, message=gate.message
            )
            for gate in version.gates
        ],
        create_time=_timestamp(version.create_time),
        promote_time=_timestamp(version.promote_time) if version.promote_time else None,
        etag=version.etag,
        training_id=version.training_id,
    )


def audit_message(entry: AuditEntry) -> registry_pb2.AuditEntry:
    """An entry of the audit trail as the contract shows it."""
    return registry_pb2.AuditEntry(
        id=entry.id,
        model=entry.model,
        version=entry.version,
        action=entry.action,
        actor=entry.actor,
        reason=entry.reason,
        cause_id=entry.cause_id,
        time=_timestamp(entry.time),
    )


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message
