"""What is measured of a run, and the arithmetic on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.report import medians

__all__ = ["Cost", "growth", "median_cost", "row"]

MIB = 2**20


@dataclass(frozen=True)
class Cost:
    """Of one run: seconds, processor seconds of the process that is measured, records, and their bytes."""

    seconds: float
    processor: float
    records: int
    size: int

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.seconds

    @property
    def rate_per_core(self) -> float:
        """Records per second of processor time."""
        return self.records / self.processor


def median_cost(costs: Sequence[Cost]) -> Cost:
    """Of repeats of the same: the median of each figure."""
    return Cost(
        medians([cost.seconds for cost in costs]),
        medians([cost.processor for cost in costs]),
        costs[0].records,
        costs[0].size,
    )


def row(what: str, cost: Cost) -> dict[str, float | str]:
    """One line of a table."""
    return {
        "what": what,
        "records": cost.records,
        "seconds": cost.seconds,
        "records/s": round(cost.rate),
        "MiB/s": round(cost.size / MIB / cost.seconds, 1),
        "processor µs/record": round(cost.processor / cost.records * 1e6, 1),
        "records/s per core": round(cost.rate_per_core),
    }


def growth(samples: Sequence[tuple[int, float]]) -> float:
    """How memory grew once the first fifth of the records was read: its median in the last fifth over the second one.

    Args:
        samples: records read so far, and memory.
    """
    most = samples[-1][0]
    early = [memory for records, memory in samples if 0.2 * most < records <= 0.4 * most]
    late = [memory for records, memory in samples if records > 0.8 * most]
    return medians(late) / medians(early)
