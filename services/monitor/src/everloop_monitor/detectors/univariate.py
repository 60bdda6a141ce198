"""The distance of each feature to the reference sample, by NannyML's methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from everloop_contracts.monitoring import DriftMethods
from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR", "Distance"]


class Distance:
    """The distance of one column to that of the reference sample.

    It asks NannyML's method itself, not its calculator, which would put every number into a frame of its own.
    """

    def __init__(self, method: str, column: NDArray[Any], *, text: bool) -> None:
        """Takes NannyML's name of the method, and the column of the sample: numbers, or codes of texts."""
        from nannyml.chunk import CountBasedChunker
        from nannyml.drift.univariate.methods import FeatureType, MethodFactory
        from nannyml.thresholds import ConstantThreshold

        kind = FeatureType.CATEGORICAL if text else FeatureType.CONTINUOUS
        # By bins, whatever the sample's size: of small ones SciPy would also work out an exact p-value.
        options = {"computation_params": {method: {}, "calculation_method": "estimated"}}
        self._method = MethodFactory.create(
            method,
            kind,
            chunker=CountBasedChunker(chunk_number=1),
            threshold=ConstantThreshold(upper=math.inf),
            **(options if method in ("kolmogorov_smirnov", "wasserstein") else {}),
        )
        self._text = text
        present = column if text else column[np.isfinite(column)]
        # What a column that lost all its values is away: as far as can be, or as far as the sample is wide.
        self._farthest = float(np.ptp(present)) if method == "wasserstein" else 1.0
        # SciPy takes the root of a rounding error below 0 where distributions are equal.
        with np.errstate(invalid="ignore"):
            self._method.fit(pd.Series(column, name="column"))

    def to(self, column: NDArray[Any]) -> float:
        """The distance to another column."""
        if not self._text and np.isnan(column).all():
            return self._farthest
        with np.errstate(invalid="ignore"):
            value = float(self._method.calculate(pd.Series(column)))
        return value if math.isfinite(value) else 0.0


def distances(methods: DriftMethods, sample: Sample) -> dict[str, Distance]:
    """A distance for each column that has values in the sample."""
    found = {
        name: Distance(methods.number, column, text=False)
        for name, column in sample.numbers.items()
        if np.isfinite(column).any()
    }
    for name, column in sample.texts.items():
        found[name] = Distance(methods.text, column, text=True)
    return found


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    methods = pipeline.monitoring.drift.methods
    fitted = distances(methods, sample)

    def read(chunk: Sample) -> Iterable[Reading]:
        for name, distance in fitted.items():
            text = name in chunk.texts
            value = distance.to(chunk.texts[name] if text else chunk.numbers[name])
            measure = methods.text if text else methods.number
            yield Reading("drift", measure, value, feature=name, distance=True)

    return read if fitted else None


DETECTOR = Detector(_fit, ("drift",), by_segment=True)
