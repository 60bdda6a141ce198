"""What a detector is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Condition, Reading

__all__ = ["Detector", "Read"]

Read = Callable[[Sample], Iterable[Reading]]
"""Reads a chunk, or a part of the reference sample."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A way to tell that a chunk is not like the reference sample.

    Attributes:
        fit: learns from the reference sample; None where it teaches nothing. What is normal for a reading is learned
            from chunks of the sample, for all detectors alike: see `everloop_monitor.normal`.
        conditions: what it reads about.
        labelled: True if it reads only rows whose label is known, when labels have come.
        by_segment: True if it also reads the rows of each declared segment.
        learned: whether what is normal is to be learned; for segments it always is.
        cheap: False where a reading takes so long that fewer chunks of the sample are read.
    """

    fit: Callable[[Pipeline, Sample], Read | None]
    conditions: tuple[Condition, ...]
    labelled: bool = False
    by_segment: bool = False
    learned: bool = True
    cheap: bool = True
