"""Values that are missing, that the reference sample never had, or that lie beyond its range: shares of the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import NULL, UNSEEN, Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    ranges = {
        name: (np.nanmin(column), np.nanmax(column))
        for name, column in sample.numbers.items()
        if np.isfinite(column).any()
    }

    def shares(rows: Sample) -> Iterable[tuple[str, str, float]]:
        for name, column in rows.numbers.items():
            yield "missing", name, _share(np.isnan(column))
            if name in ranges:
                low, high = ranges[name]
                yield "out_of_range", name, _share((column < low) | (column > high))
        for name, codes in rows.texts.items():
            yield "missing", name, _share(codes == NULL)
            yield "unseen", name, _share(codes == UNSEEN)

    usual = {(measure, name): value for measure, name, value in shares(sample)}

    def read(chunk: Sample) -> Iterable[Reading]:
        for measure, name, value in shares(chunk):
            reference = usual[measure, name]
            # Laplace's rule: what the sample had no row of is rare, not impossible.
            rate = (reference * len(sample) + 1) / (len(sample) + 2)
            error = math.sqrt(rate * (1 - rate) * (1 / len(chunk) + 1 / len(sample)))
            yield Reading(
                "data_quality", measure, value, feature=name, error=error, reference=reference
            )

    return read if sample.numbers or sample.texts else None


def _share(those: NDArray[Any]) -> float:
    return float(np.count_nonzero(those)) / len(those)


DETECTOR = Detector(_fit, ("data_quality",))
