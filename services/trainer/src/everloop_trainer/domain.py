"""What the trainer knows: datasets, trainings and what came of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from everloop_features import InputSpec

__all__ = [
    "Cancelled",
    "Cause",
    "DataFile",
    "Dataset",
    "Progress",
    "Signature",
    "Slice",
    "State",
    "Trained",
    "Training",
    "TrainingError",
]


class TrainingError(Exception):
    """The data or the pipeline do not allow a model; trying again cannot help."""


class Cancelled(Exception):
    """Somebody has asked for the end of this training."""


class State(StrEnum):
    """Life of a training."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SUPERSEDED = "superseded"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """True if it will not change any more."""
        return self not in (State.QUEUED, State.RUNNING)


class Cause(StrEnum):
    """Why a training happens."""

    FIRST_DATA = "first_data"
    NEW_ROWS = "new_rows"
    DRIFT = "drift"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of a dataset version: where its content is, and its MD5 in hexadecimal."""

    uri: str
    md5: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset version, complete and immutable."""

    pipeline: str
    version: int
    git_tag: str
    git_commit: str
    rows: int
    labelled_rows: int
    files: tuple[DataFile, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """One training, as the store holds it.

    Attributes:
        position: order of the requests.
        cause_id: id of the event or request behind it; unique within a pipeline.
        attempts: times it was started.
        best_metric: best validation metric so far; None before the first trial ends.
        cancel_time: when its cancellation was asked for; it is carried out before anything else is done for it.
        error: what went wrong, or who cancelled it and why.
        trace: trace context of the request.
    """

    id: str
    position: int
    dataset: Dataset
    state: State
    cause: Cause
    cause_id: str
    create_time: datetime
    attempts: int = 0
    trials_done: int = 0
    trials_total: int = 0
    best_metric: float | None = None
    best_family: str = ""
    run_id: str = ""
    start_time: datetime | None = None
    end_time: datetime | None = None
    cancel_time: datetime | None = None
    error: str = ""
    trace: Mapping[str, str] = field(default_factory=dict)

    @property
    def pipeline(self) -> str:
        """Name of the pipeline."""
        return self.dataset.pipeline


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a search is."""

    trials_done: int
    best_metric: float | None
    best_family: str


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of the holdout that has one value in one field.

    Attributes:
        field: its name.
        value: as text; empty for null.
        rows: how many have it.
        metrics: of the judged model.
        baseline_metrics: of the Production version; empty if there was none.
    """

    field: str
    value: str
    rows: int
    metrics: dict[str, float]
    baseline_metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a model takes and answers.

    Attributes:
        inputs: its raw inputs, in order.
        classes: labels of a classifier, in the order of its probabilities; empty for regression.
    """

    inputs: tuple[InputSpec, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model that is in MLflow, complete; JSON of it is the last artifact of its run.

    Attributes:
        metrics: on the holdout, of the model before it was refitted on all rows.
        baseline_version: Production version that was scored on the same rows; 0 if none.
        export_difference: largest difference between the model and its export on the golden rows.
        seconds: wall time from the start of the training to the logged model.
        intervals: lower and upper end of each metric, at 95 % confidence.
        slices: metrics of parts of the holdout.
        model_bytes: size of the ONNX file.
        p99_seconds: 99th percentile of the time for one row.
        cpu_seconds: processor time of trials and training.
        threshold: probability from which a binary model answers `true`; 0 for other tasks.
        scores_path: artifact of the run with what both models said about each row of the holdout.
        gains: by metric, how much better than the Production version it is on each resample of the holdout's rows.
        signature: what it takes and answers.
        baseline_signature: what the Production version takes and answers; None if there was none.
    """

    run_id: str
    model_uri: str
    family: str
    metrics: dict[str, float]
    baseline_version: int
    baseline_metrics: dict[str, float]
    export_difference: float
    onnx_sha256: str
    seconds: float
    training_rows: int
    holdout_rows: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    slices: tuple[Slice, ...] = ()
    model_bytes: int = 0
    p99_seconds: float = 0.0
    cpu_seconds: float = 0.0
    threshold: float = 0.0
    scores_path: str = ""
    gains: dict[str, tuple[float, ...]] = field(default_factory=dict)
    signature: Signature | None = None
    baseline_signature: Signature | None = None
