"""What a model family is: the one protocol between the search and any way of learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx

from everloop_contracts.pipeline import Task
from everloop_features import Encoding

__all__ = ["Choice", "Family", "Floats", "Params", "Predict", "Problem", "Range", "Report", "Space"]

Floats = npt.NDArray[np.float32]
Params = Mapping[str, Any]
Predict = Callable[[Floats], Floats]
Report = Callable[[float, Predict], None]
"""Told now and then while a model is fitted: the share of the work that is done, and the model so far."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number between two bounds, both included."""

    low: float
    high: float
    default: float
    log: bool = False
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values."""

    values: tuple[str | int | float, ...]
    default: str | int | float


Space = Mapping[str, Range | Choice]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is to be learned.

    Attributes:
        task: binary, multiclass or regression.
        classes: number of classes; 0 for regression.
    """

    task: Task
    classes: int


class Family(Protocol):
    """A way of learning. One file of this package that ends in `FAMILY = …` adds one; its name is the file's."""

    @property
    def encoding(self) -> Encoding:
        """Which encoding of the features it takes."""

    @property
    def space(self) -> Space:
        """Its parameters; the defaults are tried first."""

    def fit(
        self,
        problem: Problem,
        features: Floats,
        target: npt.NDArray[Any],
        params: Params,
        seed: int,
        report: Report | None = None,
        weights: Floats | None = None,
    ) -> Any:
        """Fits a model.

        Args:
            problem: what is to be learned.
            features: `[rows, width]`, float32; NaN only in the ordinal encoding.
            target: `[rows]`: class position from 0, or the number.
            params: a value for every name in `space`.
            seed: makes the outcome repeatable.
            weights: `[rows]`: how much each row counts; None where all count alike.
            report: called at growing shares of the work, the last at 1.0; None where nobody asks.
        """

    def predict(self, problem: Problem, model: Any, features: Floats) -> Floats:
        """Probabilities `[rows, classes]`, or numbers `[rows, 1]`."""

    def to_onnx(self, problem: Problem, model: Any, width: int) -> onnx.ModelProto:
        """The model as ONNX: `features` `[rows, width]` in; `probabilities` or `score` out, as `predict` gives it."""
