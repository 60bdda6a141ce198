"""river's ADWIN: where in a row of values their mean changed, without waiting for a full chunk.

Learning from Time-Changing Data with Adaptive Windowing, Bifet and Gavaldà, 2007. Its bound holds for values between 0
and 1: numbers become their rank in the reference sample, texts how frequent they are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everloop_monitor.detectors import Sample

__all__ = ["Changes"]

_KNOWN_ROWS = 1_000
"""Rows of the reference sample that each window starts with."""
_SEED = 7


def _window(delta: float) -> Any:
    from river.drift import ADWIN

    return ADWIN(delta=delta)  # type: ignore[no-untyped-call]


class Changes:
    """Finds columns that left the reference sample."""

    def __init__(self, sample: Sample, false_alarms: float) -> None:
        """Takes the reference sample, and the probability of a false alarm over all columns of one look."""
        self._numbers = {
            name: np.sort(column[np.isfinite(column)])
            for name, column in self._columns(sample)
            if np.isfinite(column).any()
        }
        self._texts = {
            name: np.bincount(codes, minlength=len(sample.categories[name]) + 1) / len(sample)
            for name, codes in sample.texts.items()
        }
        columns = len(self._numbers) + len(self._texts)
        self._delta = false_alarms / max(columns, 1)
        order = np.random.default_rng(_SEED).permutation(len(sample))[:_KNOWN_ROWS]
        self._known = dict(self._values(sample.take(order)))

    @staticmethod
    def _columns(rows: Sample) -> Iterable[tuple[str, NDArray[np.float64]]]:
        yield from rows.numbers.items()
        yield "score", rows.scores

    def _values(self, rows: Sample) -> Iterable[tuple[str, NDArray[np.float64]]]:
        """Every column as numbers between 0 and 1, without missing values."""
        for name, column in self._columns(rows):
            if name in self._numbers:
                known = self._numbers[name]
                present = column[np.isfinite(column)]
                # Halfway between both sides where values are equal.
                ranks = np.searchsorted(known, present, "left") + np.searchsorted(
                    known, present, "right"
                )
                yield name, ranks / (2 * len(known))
        for name, codes in rows.texts.items():
            yield name, self._texts[name][codes]

    def found(self, rows: Sample) -> dict[str, int]:
        """For each column that changed, after how many values that was seen."""
        found: dict[str, int] = {}
        for name, values in self._values(rows):
            window = _window(self._delta)
            for value in self._known[name].tolist():
                window.update(value)
            for count, value in enumerate(values.tolist(), start=1):
                window.update(value)
                if window.drift_detected:
                    found[name] = count
                    break
        return found
