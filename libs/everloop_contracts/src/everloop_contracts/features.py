"""The section `features`: the kinds of features that can be declared."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from everloop_contracts.schema import NUMERIC, FieldType
from everloop_contracts.spec import Spec

__all__ = [
    "ACCEPTS",
    "BinsFeature",
    "CategoryFeature",
    "CrossFeature",
    "DatePartFeature",
    "Feature",
    "NumberFeature",
    "RatioFeature",
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


Feature = Annotated[
    NumberFeature
    | CategoryFeature
    | DatePartFeature
    | BinsFeature
    | RatioFeature
    | CrossFeature
    | TargetMeanFeature,
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
}
"""Types of the fields that each kind is computed from."""
