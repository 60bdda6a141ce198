"""What the monitor knows: rows of predictions, chunks of them, and decisions about them."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ODD",
    "Action",
    "Chunk",
    "Condition",
    "Decision",
    "FeatureDrift",
    "Measurement",
    "Prediction",
    "Readings",
    "RecordedDecision",
    "Report",
    "Request",
    "Rows",
    "Span",
    "decision_id",
    "drift_event_id",
    "span_of",
    "spans_of",
    "stable_id",
]

Condition = Literal["drift", "estimated_performance", "realised_performance"]
Action = Literal["retrain", "wait", "cooldown", "already_requested"]

# Makes ids that a replay makes again.
_NAMESPACE = uuid.UUID("0b2c1f6e-6f0a-5d0e-9d0a-6d6f6e69746f")
_PREDICTION_ID = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,15})")


def stable_id(*parts: object) -> str:
    """An id that is the same whenever its parts are the same.

    >>> stable_id("a", 1) == stable_id("a", 1) != stable_id("a", 2)
    True
    """
    return str(uuid.uuid5(_NAMESPACE, "\x1f".join(str(part) for part in parts)))


def drift_event_id(chunk_id: str, *occasion: str) -> str:
    """Id of the DriftDetected that a chunk causes; with an occasion, of another one."""
    return stable_id("DriftDetected", chunk_id, *occasion)


def decision_id(chunk_id: str, occasion: str) -> str:
    """Id of the decision that follows one evaluation of a chunk."""
    return stable_id("Decision", chunk_id, occasion)


@dataclass(frozen=True, slots=True)
class Span:
    """The predictions of one serving process in a batch: counters from `first` to `last`, perhaps with gaps."""

    epoch: str
    first: int
    last: int


ODD = Span("", 0, 0)
"""Where ids go that do not look like `<16 hex epoch>-<counter hex>`: they are found by reading."""


def span_of(prediction_id: str) -> Span:
    """Where a prediction id belongs.

    >>> span_of("00000000000000ff-1a")
    Span(epoch='00000000000000ff', first=26, last=26)
    >>> span_of("mine")
    Span(epoch='', first=0, last=0)
    """
    match = _PREDICTION_ID.fullmatch(prediction_id)
    if match is None:
        return ODD
    counter = int(match[2], 16)
    return Span(match[1], counter, counter)


def spans_of(prediction_ids: list[str]) -> list[Span]:
    """The spans that cover all the ids, one per epoch.

    >>> spans_of(["00000000000000ff-1", "00000000000000ff-3"])
    [Span(epoch='00000000000000ff', first=1, last=3)]
    """
    spans: dict[str, Span] = {}
    for one in map(span_of, prediction_ids):
        known = spans.get(one.epoch, one)
        spans[one.epoch] = Span(one.epoch, min(known.first, one.first), max(known.last, one.last))
    return list(spans.values())


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of predictions by columns; every array holds one value per row.

    Attributes:
        numbers: int and float inputs; NaN where null or infinite.
        texts: text and boolean inputs; "" where null.
        scores: probability of the positive class, or the predicted number.
        labels: predicted class labels; "" for regression.
        record_ids: ids that labels are joined by; "" where the caller gave none.
        first_event: earliest event time.
        last_event: latest event time.
    """

    numbers: dict[str, NDArray[np.float64]]
    texts: dict[str, NDArray[np.object_]]
    scores: NDArray[np.float64]
    labels: NDArray[np.object_]
    record_ids: list[str]
    first_event: datetime
    last_event: datetime

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True)
class Readings:
    """What the detector reads from a chunk, before any rule has judged it.

    Attributes:
        distances: distance to the reference sample per feature, 0 to 1.
        reconstruction_error: mean PCA reconstruction error; None with fewer than two numeric features.
        reconstruction_limit: upper bound that the reference sample puts around it.
        estimated: performance estimated without labels; None where it cannot be.
    """

    distances: dict[str, float]
    reconstruction_error: float | None = None
    reconstruction_limit: float | None = None
    estimated: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """A value with the band that is normal; out of it, it alerts."""

    measure: str
    value: float
    lower: float | None = None
    upper: float | None = None
    alert: bool = False

    def __str__(self) -> str:
        if self.lower is not None:
            bound = f" {'<' if self.alert else '>='} {self.lower:.4f}"
        elif self.upper is not None:
            bound = f" {'>' if self.alert else '<='} {self.upper:.4f}"
        else:
            bound = ""
        return f"{self.measure} {self.value:.4f}{bound}"


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """Drift of one feature."""

    feature: str
    measurement: Measurement


@dataclass(frozen=True, slots=True)
class Report:
    """What an evaluated chunk showed.

    Attributes:
        features: drift per feature, strongest first.
        drift_share: share of the features that drifted.
        drift_alert: True if the share reaches the pipeline's limit.
        multivariate: reconstruction error.
        estimated: performance without labels.
        realised: performance with labels; None until enough have come.
    """

    features: tuple[FeatureDrift, ...]
    drift_share: float
    drift_alert: bool
    multivariate: Measurement | None = None
    estimated: Measurement | None = None
    realised: Measurement | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """`rows` consecutive predictions of one model version, from row `first_row` in order of arrival.

    Attributes:
        position: order among all chunks of the monitor.
        cause: id of the event that filled it.
        trace: `traceparent` of that event; empty if it had none.
        run_id: MLflow run of the version; empty while the version is unknown.
        promoted: False for a version that was never in Production: it is on trial, or was.
        labelled_rows: rows whose label is known, as last counted.
        announced: True once its DriftDetected is out.
        report: None until evaluated.
        failure: why it was given up; empty where it was not.
    """

    position: int
    pipeline: str
    version: int
    index: int
    first_row: int
    rows: int
    cause: str
    trace: str = ""
    run_id: str = ""
    promoted: bool = True
    labelled_rows: int = 0
    announced: bool = False
    first_event: datetime | None = None
    last_event: datetime | None = None
    evaluated_at: datetime | None = None
    report: Report | None = None
    failure: str = ""

    @property
    def id(self) -> str:
        """`<pipeline>/<model version>/<index>`."""
        return f"{self.pipeline}/{self.version}/{self.index}"

    @property
    def alert(self) -> bool:
        """True if anything that the pipeline sets a limit for is beyond it."""
        return any(
            self.verdict(condition)
            for condition in ("drift", "estimated_performance", "realised_performance")
        )

    def verdict(self, condition: Condition) -> bool | None:
        """Whether the chunk alerts on a condition; None while that is not known."""
        if self.report is None:
            return None
        if condition == "drift":
            return self.report.drift_alert
        measured = (
            self.report.estimated if condition == "estimated_performance" else self.report.realised
        )
        return None if measured is None else measured.alert

    def evidence(self, condition: Condition) -> str:
        """The numbers behind the verdict, for a person."""
        if self.report is None:
            return "not evaluated"
        if condition == "drift":
            drifted = [
                f"{d.feature} {d.measurement.value:.3f}"
                for d in self.report.features
                if d.measurement.alert
            ]
            return f"{self.report.drift_share:.0%} of the features drifted" + (
                f" ({', '.join(drifted)})" if drifted else ""
            )
        measured = (
            self.report.estimated if condition == "estimated_performance" else self.report.realised
        )
        return str(measured) if measured else "not known"


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a new model."""

    id: str
    pipeline: str
    version: int
    chunk_id: str
    reason: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy decided after one evaluation.

    Attributes:
        request_id: id of the request if the action is `retrain`, else empty.
    """

    action: Action
    reason: str
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class RecordedDecision:
    """A decision as it is kept; `position` is its order among all of the monitor."""

    position: int
    id: str
    pipeline: str
    version: int
    chunk_id: str
    action: str
    reason: str
    made_at: datetime


@dataclass(frozen=True, slots=True)
class Prediction:
    """A logged prediction; a shadow's answered nobody."""

    id: str
    pipeline: str
    version: int
    record_id: str
    time_micros: int
    label: str
    score: float
    event_id: str
    shadow: bool = False
