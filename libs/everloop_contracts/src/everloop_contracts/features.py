"""The section `features`: the kinds of features that can be declared."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from everloop_contracts.schema import NUMERIC, FieldType
from everloop_contracts.spec import Duration, Spec

__all__ = [
    "LEARNS",
    "AggregateFeature",
    "BinsFeature",
    "CategoryFeature",
    "CrossFeature",
    "DatePartFeature",
    "Feature",
    "HashFeature",
    "ImputeFeature",
    "MissingFeature",
    "NumberFeature",
    "OneHotFeature",
    "OrdinalFeature",
    "RatioFeature",
    "ScaleFeature",
    "TargetMeanFeature",
    "accepts",
]


class NumberFeature(Spec):
    """A numeric field as it is; nulls become the training median."""

    kind: Literal["number"]
    of: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class CategoryFeature(Spec):
    """A text or boolean field as a category; rare and unseen values share one code."""

    kind: Literal["category"]
    of: str
    max_categories: int = Field(default=64, ge=2, le=4096)
    """The most frequent values that keep a code of their own."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class DatePartFeature(Spec):
    """Hour or weekday (Monday is 0) of a timestamp, on the wall clock of the field's time zone."""

    kind: Literal["date_part"]
    of: str
    part: Literal["hour", "weekday"]

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class BinsFeature(Spec):
    """Number of edges that a numeric field reaches."""

    kind: Literal["bins"]
    of: str
    edges: tuple[float, ...] = Field(min_length=1)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)

    @field_validator("edges")
    @classmethod
    def _increasing(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("edges must increase")
        return value


class RatioFeature(Spec):
    """One numeric field divided by another; the training median where it is not defined."""

    kind: Literal["ratio"]
    of: str
    by: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of, self.by)


class CrossFeature(Spec):
    """Two text fields together as one category."""

    kind: Literal["cross"]
    of: tuple[str, str]
    max_categories: int = Field(default=256, ge=2, le=16384)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return self.of


class TargetMeanFeature(Spec):
    """Mean of the target per value of a text field, over the training rows, shrunk to the overall mean."""

    kind: Literal["target_mean"]
    of: str
    smoothing: float = Field(default=50.0, gt=0)
    """Weight of the overall mean, in rows."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class OneHotFeature(Spec):
    """A column for each frequent value of a text field, 1 where it is there; for trees as well."""

    kind: Literal["one_hot"]
    of: str
    max_categories: int = Field(default=16, ge=1, le=64)
    """The most frequent values, which have a column each; any other is 0 in all of them."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class OrdinalFeature(Spec):
    """Position of a text field's value in an order, from 0; missing for any other value."""

    kind: Literal["ordinal"]
    of: str
    order: tuple[str, ...] = Field(min_length=2)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)

    @field_validator("order")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a value can be only once in an order")
        return value


class ScaleFeature(Spec):
    """A numeric field on another scale; what it takes is learned from the training rows."""

    kind: Literal["scale"]
    of: str
    method: Literal["standard", "min_max", "robust", "log"] = "standard"
    """`standard`: mean 0 and deviation 1. `min_max`: the training rows' range as 0 to 1, cut off there. `robust`:
    median 0, interquartile range 1, cut off at ±5. `log`: logarithm of one plus the absolute value, with its sign."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class ImputeFeature(Spec):
    """A numeric field with a value where it is missing, for every family alike."""

    kind: Literal["impute"]
    of: str
    strategy: Literal["mean", "median", "constant"] = "median"
    """Of the training rows, or `value`."""
    value: float = 0.0
    """What `constant` puts there."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class MissingFeature(Spec):
    """1 where a field of any type is null, else 0. An empty text is null."""

    kind: Literal["missing"]
    of: str

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class HashFeature(Spec):
    """Counts of a text's words by the bucket that their hash falls into; words are what single spaces part."""

    kind: Literal["hash"]
    of: str
    buckets: int = Field(default=32, ge=2, le=1024)

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.of,)


class AggregateFeature(Spec):
    """What earlier rows with the same value of a text field say, in a window of whole days before the row's own day.

    A day is one of the wall clock of `time`. Only days before a row's own count, so that a training row knows no more
    than was known at its time. A model knows the rows that it learned from: after the last of their days that day's
    window stands, until the next training.
    """

    kind: Literal["aggregate"]
    function: Literal["count", "sum", "mean"]
    """`count` of the rows, or `sum` or `mean` of a numeric field, nulls left out."""
    of: str | None = None
    """The numeric field; a count has none."""
    by: str
    """Text field whose value the rows have in common."""
    time: str
    """Timestamp field that says on which day a row is."""
    window: Duration = Field(ge=timedelta(days=1), le=timedelta(days=366))
    """Whole days."""

    @property
    def sources(self) -> tuple[str, ...]:
        """Fields it is computed from."""
        return (self.by, self.time) if self.of is None else (self.of, self.by, self.time)

    @model_validator(mode="after")
    def _fits(self) -> AggregateFeature:
        if self.window % timedelta(days=1):
            raise ValueError("window must be whole days, such as 7d")
        if (self.of is None) != (self.function == "count"):
            raise ValueError("a sum or a mean is `of` a field, a count is of none")
        return self


Feature = Annotated[
    NumberFeature
    | CategoryFeature
    | DatePartFeature
    | BinsFeature
    | RatioFeature
    | CrossFeature
    | TargetMeanFeature
    | OneHotFeature
    | OrdinalFeature
    | ScaleFeature
    | ImputeFeature
    | MissingFeature
    | HashFeature
    | AggregateFeature,
    Field(discriminator="kind"),
]
"""One declared feature, told apart by its `kind`."""

_TEXT = (FieldType.STRING,)
_ACCEPTS: dict[str, tuple[FieldType, ...]] = {
    "number": (*NUMERIC, FieldType.BOOL),
    "category": (FieldType.STRING, FieldType.BOOL),
    "date_part": (FieldType.TIMESTAMP,),
    "bins": NUMERIC,
    "ratio": NUMERIC,
    "cross": _TEXT,
    "target_mean": _TEXT,
    "one_hot": _TEXT,
    "ordinal": _TEXT,
    "scale": NUMERIC,
    "impute": NUMERIC,
    "missing": tuple(FieldType),
    "hash": _TEXT,
}


def accepts(feature: Feature) -> dict[str, tuple[FieldType, ...]]:
    """Types that a feature takes, for each field that it is computed from."""
    if not isinstance(feature, AggregateFeature):
        return dict.fromkeys(feature.sources, _ACCEPTS[feature.kind])
    accepted: dict[str, tuple[FieldType, ...]] = {} if feature.of is None else {feature.of: NUMERIC}
    return {**accepted, feature.by: _TEXT, feature.time: (FieldType.TIMESTAMP,)}


LEARNS: dict[str, str] = {
    "category": "the most frequent values",
    "cross": "the most frequent pairs",
    "target_mean": "the target's mean for each value",
    "one_hot": "the most frequent values",
    "scale": "centre and spread",
    "impute": "mean or median",
    "aggregate": "each day's window, by value",
}
"""What the training rows teach the kinds that learn anything."""
