"""What a pipeline has watched, and when it asks for a new model."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from everloop_contracts.metrics import WatchedMetric
from everloop_contracts.spec import Duration, Spec

__all__ = [
    "DriftMethods",
    "DriftRule",
    "Monitoring",
    "PerformanceRule",
    "QualityRule",
    "QuietHours",
    "Retrain",
]

_CLOCK = r"^([01]\d|2[0-3]):[0-5]\d$"


NumberMethod = Literal["jensen_shannon", "hellinger", "kolmogorov_smirnov", "wasserstein"]
TextMethod = Literal["jensen_shannon", "hellinger", "chi2", "l_infinity"]


class DriftMethods(Spec):
    """How the distance of a feature to the reference sample is measured, by its type."""

    number: NumberMethod = "jensen_shannon"
    """Of int and float fields; `wasserstein` is in the field's own unit, the others lie between 0 and 1."""
    text: TextMethod = "jensen_shannon"
    """Of string and bool fields; `chi2` is the statistic, the others lie between 0 and 1."""


class DriftRule(Spec):
    """When a chunk counts as drifted."""

    method: Literal["jensen_shannon", "hellinger"] | DriftMethods = "jensen_shannon"
    """One for all fields, or one for each type."""
    threshold: float | None = Field(default=None, gt=0)
    """Distance above which a feature counts as drifted. Where not given, the reference sample sets one for each
    feature: chunks of the sample itself go beyond theirs with the probability `false_alarms`, all features together."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of drifted features at which the chunk counts as drifted."""

    @property
    def methods(self) -> DriftMethods:
        """The method for each type."""
        if isinstance(self.method, DriftMethods):
            return self.method
        return DriftMethods(number=self.method, text=self.method)


class QualityRule(Spec):
    """When the values of a field count as bad, beside being rarer in the reference sample than chance explains."""

    tolerance: float = Field(default=0.01, ge=0, le=1)
    """How much larger than in the reference sample the share of rows may be whose value is missing, was never seen or
    lies out of range."""


class PerformanceRule(Spec):
    """When a chunk counts as badly predicted."""

    metric: WatchedMetric = "roc_auc"
    """Where not given, `roc_auc`, or `rmse` for regression."""
    max_loss: float = Field(default=0.03, gt=0)
    """Loss against the reference sample, in units of the metric, that is tolerated."""


class QuietHours(Spec):
    """A time of day in which no new model is asked for; over midnight where `end` is before `start`."""

    start: str = Field(pattern=_CLOCK)
    """Hours and minutes, in quotes: "22:00"."""
    end: str = Field(pattern=_CLOCK)
    timezone: str = "UTC"

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"no such time zone: {value}") from error
        return value

    def hold(self, moment: datetime) -> bool:
        """Whether a moment lies within them.

        >>> from datetime import UTC
        >>> QuietHours(start="22:00", end="06:00").hold(datetime(2013, 5, 1, 23, 30, tzinfo=UTC))
        True
        """
        clock = f"{moment.astimezone(ZoneInfo(self.timezone)):%H:%M}"
        if self.start <= self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


class Retrain(Spec):
    """When a new model is asked for."""

    when: tuple[
        Literal[
            "drift",
            "multivariate_drift",
            "output_drift",
            "segment_drift",
            "estimated_performance",
            "realised_performance",
            "segment_performance",
        ],
        ...,
    ] = ("realised_performance",)
    """Any of these; for a multiclass target, whose performance is not watched, only those of drift."""
    chunks: int = Field(default=2, ge=1)
    """Alerting chunks among the last `of` that it takes."""
    of: int = Field(default=3, ge=1)
    urgent: float | None = Field(default=None, gt=1)
    """Severity from which one chunk is enough and quiet hours do not hold: how many times what is tolerated was
    reached, `performance.max_loss` or another limit."""
    min_cost: float | None = Field(default=None, gt=0)
    """What the alerting chunks must have cost more than the reference sample's answers, all rows together; only where
    `performance.metric` is `cost`, in its unit."""
    cooldown: Duration = timedelta(hours=1)
    """Time after a request in which no other is made; twice as long for each one before it, in a row, that did not
    help, up to 32 times."""
    answer_within: Duration = timedelta(hours=6)
    """Time after which a request no longer counts as open, if no version was promoted, refused or failed for it."""
    per_day: int = Field(default=10, ge=1)
    """Requests in any 24 hours."""
    quiet_hours: QuietHours | None = None
    """When no request is made unless it is urgent."""

    @model_validator(mode="after")
    def _n_of_m(self) -> Self:
        if self.chunks > self.of:
            raise ValueError(f"chunks ({self.chunks}) cannot exceed of ({self.of})")
        return self


class Monitoring(Spec):
    """What is watched."""

    chunk_rows: int = Field(default=5_000, ge=100)
    min_labelled: float = Field(default=0.5, gt=0, le=1)
    """Share of a chunk's rows that need a label before its performance is realised, once labels stop coming for it."""
    detectors: tuple[str, ...] = (
        "univariate",
        "reconstruction",
        "outputs",
        "quality",
        "skew",
        "estimated",
        "realised",
    )
    """What reads a chunk, as the monitor's README lists it; `domain_classifier` takes seconds and is left out."""
    segments: tuple[str, ...] | None = None
    """String or bool fields: drift and performance are also watched in the rows of each of their values. Where not
    given, `training.slices`."""
    false_alarms: float = Field(default=0.01, gt=0, lt=0.5)
    """Probability that a chunk like the reference sample alerts, for each condition whose limits the sample sets."""
    drift: DriftRule = DriftRule()
    quality: QualityRule = QualityRule()
    performance: PerformanceRule = PerformanceRule()
    retrain: Retrain = Retrain()
