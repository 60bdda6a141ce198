"""What the registry gateway knows: versions, verdicts, transitions and the trail they leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

__all__ = [
    "GATEWAY",
    "AuditEntry",
    "Candidate",
    "GateResult",
    "ModelVersion",
    "Move",
    "Request",
    "Stage",
    "Transition",
]

GATEWAY = "everloop.registry-gateway"
"""Name of this service: source of its events, group of its consumer, actor of what it does by itself."""


class Stage(StrEnum):
    """Life of a version."""

    NONE = "none"
    STAGING = "staging"
    PRODUCTION = "production"
    ARCHIVED = "archived"
    REJECTED = "rejected"


class Move(StrEnum):
    """Ways into Production."""

    PROMOTION = "promotion"
    ROLLBACK = "rollback"


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
    """One thing that was done to a version."""

    id: int
    model: str
    version: int
    action: str
    actor: str
    reason: str
    cause_id: str
    time: datetime
