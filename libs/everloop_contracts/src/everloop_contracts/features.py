"""The section `features`: the kinds of features that can be declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from everloop_contracts.schema import NUMERIC, FieldType
from everloop_contracts.spec import Spec

__all__ = [
    "ACCEPTS",
    "LEARNS",
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
    | HashFeature,
    Field(discriminator="kind"),
]
"""One declared feature, told apart by its `kind`."""

_TEXT = (FieldType.STRING,)
ACCEPTS: dict[str, tuple[FieldType, ...]] = {
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
"""Types of the fields that each kind is computed from."""
LEARNS: dict[str, str] = {
    "category": "the most frequent values",
    "cross": "the most frequent pairs",
    "target_mean": "the target's mean for each value",
    "one_hot": "the most frequent values",
    "scale": "centre and spread",
    "impute": "mean or median",
}
"""What the training rows teach the kinds that learn anything."""
