"""Between the contract's messages and the domain."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from google.protobuf.timestamp_pb2 import Timestamp

from everloop_contracts.latency import BUCKETS
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2
from everloop_contracts.stubs.everloop.training.v1 import events_pb2, training_pb2
from everloop_registry_gateway.domain import (
    ArmTotals,
    AuditEntry,
    Candidate,
    GateResult,
    ModelVersion,
    Rollout,
    RolloutPlan,
    RolloutState,
    Signature,
    SliceMetrics,
    Stage,
    Strategy,
)
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event

__all__ = [
    "ROLLOUT_STATES",
    "audit_message",
    "candidate_of",
    "invalid",
    "plan_of",
    "rollout_message",
    "totals_of",
    "trial_message",
    "version_message",
]

STAGES = {
    Stage.NONE: registry_pb2.STAGE_NONE,
    Stage.STAGING: registry_pb2.STAGE_STAGING,
    Stage.PRODUCTION: registry_pb2.STAGE_PRODUCTION,
    Stage.ARCHIVED: registry_pb2.STAGE_ARCHIVED,
    Stage.REJECTED: registry_pb2.STAGE_REJECTED,
}

STRATEGIES = {
    Strategy.CANARY: registry_pb2.ROLLOUT_STRATEGY_CANARY,
    Strategy.SHADOW: registry_pb2.ROLLOUT_STRATEGY_SHADOW,
    Strategy.AB: registry_pb2.ROLLOUT_STRATEGY_AB,
}
ROLLOUT_STATES = {
    RolloutState.RUNNING: registry_pb2.ROLLOUT_STATE_RUNNING,
    RolloutState.PROMOTED: registry_pb2.ROLLOUT_STATE_PROMOTED,
    RolloutState.ABORTED: registry_pb2.ROLLOUT_STATE_ABORTED,
}


def invalid(field: str, message: str) -> EverloopError:
    """What is wrong with a field of a request."""
    return EverloopError(Kind.INVALID, "INVALID_ARGUMENT", f"{field}: {message}", field=field)


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
        slices=tuple(
            SliceMetrics(part.field, part.value, part.rows, dict(part.metrics))
            for part in trained.slices
        ),
        gains={name: tuple(gains.values) for name, gains in trained.gains.items()},
        model_bytes=trained.model_bytes,
        p99_seconds=trained.p99_seconds,
        signature=_signature(trained, "signature"),
        baseline_signature=_signature(trained, "baseline_signature"),
    )


def _signature(
    trained: events_pb2.ModelTrained, field: Literal["signature", "baseline_signature"]
) -> Signature | None:
    if not trained.HasField(field):
        return None
    message: events_pb2.ModelSignature = getattr(trained, field)
    inputs = {item.name: (item.type, item.nullable) for item in message.inputs}
    return Signature(inputs, tuple(message.classes))


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
        gates=map(_verdict, version.gates),
        create_time=_timestamp(version.create_time),
        promote_time=_timestamp(version.promote_time) if version.promote_time else None,
        etag=version.etag,
        training_id=version.training_id,
        artifact_sha256=version.artifact_sha256,
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
        evidence=map(_verdict, entry.evidence),
        link=entry.link,
    )


def rollout_message(rollout: Rollout) -> registry_pb2.Rollout:
    """A rollout as the contract shows it."""
    message = _rollout_without_totals(rollout)
    message.candidate.CopyFrom(_arm(rollout.candidate))
    message.baseline.CopyFrom(_arm(rollout.baseline))
    return message


def trial_message(version: ModelVersion, rollout: Rollout) -> registry_pb2.Trial:
    """What a replica needs to serve a version on trial."""
    return registry_pb2.Trial(
        version=version_message(version), rollout=_rollout_without_totals(rollout)
    )


def plan_of(message: registry_pb2.RolloutPlan) -> RolloutPlan:
    """The plan that a request brings; its numbers are not checked yet.

    Raises:
        EverloopError: kind invalid: no strategy, or a duration that is none.
    """
    by_number = {number: strategy for strategy, number in STRATEGIES.items()}
    if message.strategy not in by_number:
        raise invalid("plan.strategy", "must be canary, shadow or A/B")
    try:
        bake = message.bake.ToTimedelta()
    except (ValueError, OverflowError) as error:
        raise invalid("plan.bake", f"is no duration: {error}") from error
    return RolloutPlan(
        strategy=by_number[message.strategy],
        percent=message.percent,
        key=message.key,
        bake=bake,
        min_requests=message.min_requests,
        max_error_rate=message.max_error_rate,
        max_latency_ratio=message.max_latency_ratio,
        abort_on_performance=message.abort_on_performance,
    )


def totals_of(field: str, message: registry_pb2.ArmStats) -> ArmTotals:
    """What one version did in a replica.

    Raises:
        EverloopError: kind invalid: counts that no version can have.
    """
    counts = list(message.latency_counts)
    if len(counts) > BUCKETS:
        raise invalid(f"{field}.latency_counts", f"must not be more than {BUCKETS}")
    if min(message.requests, message.errors, message.rows, *counts, 0) < 0:
        raise invalid(field, "counts must not be negative")
    if message.errors > message.requests:
        raise invalid(f"{field}.errors", "must not be more than the requests")
    counts += [0] * (BUCKETS - len(counts))
    return ArmTotals(message.requests, message.errors, message.rows, tuple(counts))


def _verdict(gate: GateResult) -> registry_pb2.GateResult:
    return registry_pb2.GateResult(
        gate=gate.gate, passed=gate.passed, evidence=gate.evidence, message=gate.message
    )


def _rollout_without_totals(rollout: Rollout) -> registry_pb2.Rollout:
    message = registry_pb2.Rollout(
        id=rollout.id,
        model=rollout.model,
        candidate_version=rollout.candidate_version,
        baseline_version=rollout.baseline_version,
        plan=_plan(rollout.plan),
        state=ROLLOUT_STATES[rollout.state],
        reason=rollout.reason,
        start_time=_timestamp(rollout.start_time),
    )
    if rollout.end_time:
        message.end_time.FromDatetime(rollout.end_time)
    return message


def _plan(plan: RolloutPlan) -> registry_pb2.RolloutPlan:
    message = registry_pb2.RolloutPlan(
        strategy=STRATEGIES[plan.strategy],
        percent=plan.percent,
        key=plan.key,
        min_requests=plan.min_requests,
        max_error_rate=plan.max_error_rate,
        max_latency_ratio=plan.max_latency_ratio,
        abort_on_performance=plan.abort_on_performance,
    )
    message.bake.FromTimedelta(plan.bake)
    return message


def _arm(totals: ArmTotals) -> registry_pb2.ArmStats:
    return registry_pb2.ArmStats(
        requests=totals.requests,
        errors=totals.errors,
        rows=totals.rows,
        latency_counts=totals.latency_counts,
    )


def _timestamp(time: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(time)
    return message
