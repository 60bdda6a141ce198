"""What the monitor knows: rows of predictions, chunks of them, and decisions about them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CONDITIONS",
    "ODD",
    "Action",
    "Chunk",
    "Condition",
    "Decision",
    "EarlyWarning",
    "Evidence",
    "FeatureDrift",
    "Finding",
    "Measurement",
    "Normal",
    "Outcome",
    "Prediction",
    "Reading",
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

Condition = Literal[
    "drift",
    "multivariate_drift",
    "output_drift",
    "segment_drift",
    "data_quality",
    "schema_skew",
    "estimated_performance",
    "realised_performance",
    "segment_performance",
]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""All that a chunk can alert on."""
Action = Literal[
    "retrain",
    "wait",
    "cooldown",
    "already_requested",
    "quiet_hours",
    "over_budget",
    "helped",
    "did_not_help",
]
"""What the policy decides; the last two, about the version that came of a request."""
Outcome = Literal["open", "promoted", "rejected", "failed"]

_SHOWN = 5
"""Findings that a text names."""
# Makes ids that a replay makes again.
_NAMESPACE = uuid.UUID("0b2c1f6e-6f0a-5d0e-9d0a-6d6f6e69746f")
_PREDICTION_ID = re.compile(r"([0-9a-f]{16})-([0-9a-f]{1,15})")
_PREDICTION_IDS = re.compile(f"^{_PREDICTION_ID.pattern}$", re.MULTILINE)


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
    lines = "\n".join(prediction_ids)
    # At once: an object for each id takes longer than all else that is done with a batch.
    found = _PREDICTION_IDS.findall(lines)
    if len(found) != len(prediction_ids) or lines.count("\n") >= len(found) > 0:
        usual = [item for item in prediction_ids if span_of(item) is not ODD]
        return [*spans_of(usual), *([ODD] if len(usual) < len(prediction_ids) else [])]
    counters: dict[str, list[int]] = {}
    for epoch, counter in found:
        counters.setdefault(epoch, []).append(int(counter, 16))
    return [Span(epoch, min(some), max(some)) for epoch, some in counters.items()]


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
class Normal:
    """What chunks of the reference sample show, as a reading of the present size would: a bell curve.

    Attributes:
        mean: where it lies.
        deviation: its standard deviation, with what is not known of its mean.
        freedom: degrees of freedom of that deviation.
    """

    mean: float
    deviation: float
    freedom: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A number that a detector reads from a chunk, before any rule has judged it.

    Attributes:
        condition: what it is about.
        measure: name of the number.
        value: the number; finite.
        feature: field that it is of; empty where it is of the whole.
        segment: `field=value` of the rows that it is of; empty for all.
        error: standard error of the value that chance alone explains at this number of rows; 0 where the reference
            sample's chunks show it.
        distance: True for a distance between samples, which is never 0 and shrinks with their rows.
        reference: the same of the whole reference sample, where a rule compares with that.
        normal: what chunks of the reference sample show; None where nothing was learned.
    """

    condition: Condition
    measure: str
    value: float
    feature: str = ""
    segment: str = ""
    error: float = 0.0
    distance: bool = False
    reference: float | None = None
    normal: Normal | None = None


@dataclass(frozen=True, slots=True)
class Readings:
    """What was read from a chunk.

    Attributes:
        items: every reading.
        watched: the conditions that were looked at; one without a reading is in order.
    """

    items: tuple[Reading, ...] = ()
    watched: frozenset[Condition] = frozenset()

    def of(self, condition: Condition, segment: str = "") -> list[Reading]:
        """The readings of a condition."""
        return [r for r in self.items if r.condition == condition and r.segment == segment]


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
class Finding:
    """Something else that was found; of a single feature only where it alerts."""

    condition: Condition
    measurement: Measurement
    feature: str = ""
    segment: str = ""

    def __str__(self) -> str:
        where = " in ".join(name for name in (self.feature, self.segment) if name)
        return f"{where} {self.measurement}".lstrip()


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
        findings: everything else.
        verdicts: whether the chunk alerts on each condition besides drift and performance that was looked at.
        severities: how many times what is tolerated was reached, by condition; 1 is the limit.
    """

    features: tuple[FeatureDrift, ...]
    drift_share: float
    drift_alert: bool
    multivariate: Measurement | None = None
    estimated: Measurement | None = None
    realised: Measurement | None = None
    findings: tuple[Finding, ...] = ()
    verdicts: Mapping[Condition, bool] = field(default_factory=dict)
    severities: Mapping[Condition, float] = field(default_factory=dict)


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
        """True if anything is beyond its limit."""
        return any(self.verdict(condition) for condition in CONDITIONS)

    @property
    def alerts(self) -> list[Condition]:
        """What the chunk alerts on."""
        return [condition for condition in CONDITIONS if self.verdict(condition)]

    def verdict(self, condition: Condition) -> bool | None:
        """Whether the chunk alerts on a condition; None while that is not known."""
        if self.report is None:
            return None
        if condition == "drift":
            return self.report.drift_alert
        if condition not in ("estimated_performance", "realised_performance"):
            return self.report.verdicts.get(condition)
        measured = (
            self.report.estimated if condition == "estimated_performance" else self.report.realised
        )
        return None if measured is None else measured.alert

    def severity(self, condition: Condition) -> float:
        """How many times what is tolerated was reached; 0 where that is not known."""
        return self.report.severities.get(condition, 0.0) if self.report else 0.0

    def badness(self, condition: Condition) -> float:
        """A number that is larger the worse the chunk is: the metric, comparable between versions, or the severity."""
        measured = None
        if self.report and condition == "estimated_performance":
            measured = self.report.estimated
        elif self.report and condition == "realised_performance":
            measured = self.report.realised
        if measured is None:
            return self.severity(condition)
        return measured.value if measured.lower is None else -measured.value

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
        if condition not in ("estimated_performance", "realised_performance"):
            found = [item for item in self.report.findings if item.condition == condition]
            shown = [str(item) for item in found if item.measurement.alert] or ["nothing found"]
            return ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
        measured = (
            self.report.estimated if condition == "estimated_performance" else self.report.realised
        )
        return str(measured) if measured else "not known"


@dataclass(frozen=True, slots=True)
class EarlyWarning:
    """A feature, or `score`, that changed within a chunk that is not full.

    Attributes:
        index: number of that chunk.
        seen_after: values of the feature after which the change was seen.
        rows: rows that the chunk had then.
    """

    pipeline: str
    version: int
    index: int
    feature: str
    seen_after: int
    rows: int
    made_at: datetime

    @property
    def chunk_id(self) -> str:
        """Id that the chunk will have."""
        return f"{self.pipeline}/{self.version}/{self.index}"

    def __str__(self) -> str:
        return f"{self.feature} changed, seen after {self.seen_after} of {self.rows} rows"


@dataclass(frozen=True, slots=True)
class Request:
    """A request for a new model.

    Attributes:
        condition: what was asked for it.
        badness: how bad the chunks were on that condition, on average: see `Chunk.badness`.
        outcome: what became of it.
        answer: version that was promoted for it; 0 if none was.
        helped: whether that version did better; None until it is known.
    """

    id: str
    pipeline: str
    version: int
    chunk_id: str
    reason: str
    made_at: datetime
    condition: str = ""
    badness: float = 0.0
    outcome: str = "open"
    answer: int = 0
    helped: bool | None = None

    @property
    def in_vain(self) -> bool:
        """True if it is known not to have helped."""
        return self.outcome in ("rejected", "failed") or self.helped is False


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a chunk showed to a decision."""

    chunk_id: str
    condition: str
    shown: str
    alert: bool
    severity: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What the policy decided after one evaluation.

    Attributes:
        request_id: id of the request that is made, or that the decision is about; else empty.
        condition: what it is about; empty where it is about several.
        severity: the worst of the chunks' on that condition.
        badness: the average of the chunks' on that condition.
        evidence: the chunks that it rests on.
    """

    action: Action
    reason: str
    request_id: str = ""
    condition: str = ""
    severity: float = 0.0
    badness: float = 0.0
    evidence: tuple[Evidence, ...] = ()


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
    request_id: str = ""
    condition: str = ""
    severity: float = 0.0
    evidence: tuple[Evidence, ...] = ()


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
