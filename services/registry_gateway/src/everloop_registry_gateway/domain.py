"""What the registry gateway knows: versions, verdicts, transitions and the trail they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from everloop_contracts.artifacts import artifact_sha256
from everloop_contracts.events import REGISTRY_GATEWAY
from everloop_contracts.latency import BUCKETS

__all__ = [
    "APPROVAL",
    "GATEWAY",
    "Act",
    "ArmTotals",
    "AuditEntry",
    "Candidate",
    "Delivery",
    "GateResult",
    "ModelVersion",
    "Move",
    "Request",
    "Rollout",
    "RolloutPlan",
    "RolloutReport",
    "RolloutState",
    "Ruling",
    "Signature",
    "SliceMetrics",
    "Stage",
    "Strategy",
    "Transition",
    "Verification",
]

GATEWAY = REGISTRY_GATEWAY
"""Name of this service: source of its events, group of its consumer, actor of what it does by itself."""

APPROVAL = "approval"
"""Name of the verdict that a person leaves with a version."""


class Stage(StrEnum):
    """Life of a version."""

    NONE = "none"
    STAGING = "staging"
    PRODUCTION = "production"
    ARCHIVED = "archived"
    REJECTED = "rejected"


class Act(StrEnum):
    """What a person does with a version that waits in Staging."""

    APPROVE = "approve"
    REJECT = "reject"
    ARCHIVE = "archive"


class Move(StrEnum):
    """Ways into Production."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """Metrics of the holdout's rows that have one value in one field; those not defined there are left out."""

    field: str
    value: str
    rows: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and answers.

    Attributes:
        inputs: type of each raw input, and whether it may be null or left out, by name.
        classes: labels in the order of the probabilities; empty for regression.
    """

    inputs: Mapping[str, tuple[str, bool]]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trained model that asks for a place in the registry, with the facts its gates judge.

    Attributes:
        cause: why it was trained, as the contract names it (`CAUSE_DRIFT`, …).
        baseline_version: Production version that it was compared with; 0 if there was none.
        baseline_metrics: that version's metrics on the same holdout rows.
        export_difference: largest difference between the model and its ONNX export.
        event_id: event that announced it.
        cause_id: event or request that caused the training.
        slices: metrics of parts of the holdout.
        gains: by metric, how much better than the Production version it is on each resample of the same rows.
        model_bytes: size of the ONNX file; 0 if not measured.
        p99_seconds: 99th percentile of the time for one row; 0 if not measured.
        signature: None if the trainer does not tell it.
        baseline_signature: the Production version's.
    """

    model: str
    training_id: str
    run_id: str
    model_uri: str
    onnx_sha256: str
    family: str
    metrics: Mapping[str, float]
    dataset_version: int
    dataset_tag: str
    cause: str
    baseline_version: int
    baseline_metrics: Mapping[str, float]
    export_difference: float
    event_id: str
    cause_id: str
    slices: tuple[SliceMetrics, ...] = ()
    gains: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    model_bytes: int = 0
    p99_seconds: float = 0.0
    signature: Signature | None = None
    baseline_signature: Signature | None = None


@dataclass(frozen=True, slots=True)
class GateResult:
    """What one gate said.

    Attributes:
        gate: kind of the gate as the pipeline names it.
        evidence: the numbers that the verdict rests on.
        message: explanation for a person.
    """

    gate: str
    passed: bool
    message: str
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model.

    Attributes:
        gates: verdicts in the order of the pipeline.
        promote_time: when it was last promoted; None if never.
        etag: changes with every transition of the model.
        files: SHA-256, hexadecimal, of every file that replicas load, by path, as it lay in MLflow when the version was
            registered; empty for a version from before they were recorded.
    """

    model: str
    version: int
    stage: Stage
    training_id: str
    run_id: str
    model_uri: str
    onnx_sha256: str
    family: str
    metrics: Mapping[str, float]
    dataset_version: int
    dataset_tag: str
    cause: str
    gates: tuple[GateResult, ...]
    trained_event_id: str
    training_cause_id: str
    create_time: datetime
    promote_time: datetime | None
    etag: str
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def artifact_sha256(self) -> str:
        """SHA-256, hexadecimal, of all its files; empty where they were not recorded."""
        return artifact_sha256(self.files) if self.files else ""

    @property
    def refusals(self) -> str:
        """Why gates refused it; empty if none did."""
        return "; ".join(f"{gate.gate}: {gate.message}" for gate in self.gates if not gate.passed)


@dataclass(frozen=True, slots=True)
class Request:
    """Somebody asks for a version to be put into Production.

    Attributes:
        version: the version to promote; 0 for a rollback, which knows by itself.
        etag: the model's etag as last seen; empty to go ahead whatever the state is.
        request_id: a repeat returns the first answer; empty for no such protection.
    """

    move: Move
    model: str
    version: int = 0
    etag: str = ""
    request_id: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Ruling:
    """Somebody says what is to become of a version that waits in Staging.

    Attributes:
        etag: the model's etag as last seen; empty to go ahead whatever the state is.
        request_id: a repeat changes nothing; empty for no such protection.
    """

    act: Act
    model: str
    version: int
    etag: str = ""
    request_id: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Transition:
    """A move that is decided and may not be finished: it survives the process.

    Attributes:
        requested_version: what the request named, so that a repeat of it is recognised.
        cause_id: event or request behind it.
    """

    move: Move
    model: str
    version: int
    requested_version: int
    actor: str
    reason: str
    cause_id: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One thing that was done to a version.

    Attributes:
        evidence: verdicts that it rests on.
        link: SHA-256 of the entry and of all before it, see `chain`; empty where it is outside of the chain.
    """

    id: int
    model: str
    version: int
    action: str
    actor: str
    reason: str
    cause_id: str
    time: datetime
    evidence: tuple[GateResult, ...] = ()
    link: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that is still to be taken.

    Attributes:
        entry: of the audit trail, which it tells of.
        attempts: times that it was tried.
    """

    entry: int
    attempts: int


@dataclass(frozen=True, slots=True)
class Verification:
    """What a walk along the audit trail's chain has found.

    Attributes:
        entries: entries that fit, from the first one on.
        head: link of the last of them: who keeps it can tell later that nothing up to there was changed.
        broken: first entry that does not fit; 0 if all do.
        problem: what is wrong; empty if the trail is as it was written.
    """

    entries: int
    head: str
    broken: int = 0
    problem: str = ""


class Strategy(StrEnum):
    """What the candidate of a rollout does with requests."""

    CANARY = "canary"
    SHADOW = "shadow"
    AB = "ab"


class RolloutState(StrEnum):
    """Life of a rollout."""

    RUNNING = "running"
    PROMOTED = "promoted"
    ABORTED = "aborted"


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """How a trial runs and what ends it; `RolloutPlan` of the contract says what each part means.

    Attributes:
        max_latency_ratio: 0 for no bound.
    """

    strategy: Strategy
    percent: float
    key: str
    bake: timedelta
    min_requests: int
    max_error_rate: float
    max_latency_ratio: float
    abort_on_performance: bool


@dataclass(frozen=True, slots=True)
class ArmTotals:
    """What one of the two versions of a rollout has done, in one replica or in all of them.

    Attributes:
        latency_counts: requests by bucket of `everloop_contracts.latency`, always `BUCKETS` of them.
    """

    requests: int = 0
    errors: int = 0
    rows: int = 0
    latency_counts: tuple[int, ...] = (0,) * BUCKETS

    def __add__(self, other: Self) -> ArmTotals:
        counts = zip(self.latency_counts, other.latency_counts, strict=True)
        return ArmTotals(
            self.requests + other.requests,
            self.errors + other.errors,
            self.rows + other.rows,
            tuple(mine + theirs for mine, theirs in counts),
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """A trial of a version beside the one in Production.

    Attributes:
        candidate_version: version on trial.
        baseline_version: version that it is compared with.
        reason: why it ended; empty while it runs.
        candidate: what the version on trial has done, over all replicas.
        baseline: what the other one has done meanwhile.
        end_time: None while it runs.
    """

    id: str
    model: str
    candidate_version: int
    baseline_version: int
    plan: RolloutPlan
    state: RolloutState
    reason: str
    candidate: ArmTotals
    baseline: ArmTotals
    start_time: datetime
    end_time: datetime | None


@dataclass(frozen=True, slots=True)
class RolloutReport:
    """What one life of a replica has seen of a rollout so far.

    Attributes:
        sequence: grows with every report of the replica.
        failure: why the candidate cannot serve there; empty if it does.
    """

    rollout_id: str
    replica: str
    sequence: int
    candidate: ArmTotals
    baseline: ArmTotals
    failure: str = ""
