"""How many requests a replica answers at a time."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import Histogram

__all__ = ["Ongoing"]


class Ongoing:
    """The average since it was last asked, by Little's law: the time that requests spent inside per time that passed.

    Counting them as they come and go would cost each of them something; what they took is measured anyway.
    """

    def __init__(
        self, durations: Histogram, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """Begins to count; takes the durations of requests in seconds, over all labels."""
        self._durations = durations
        self._clock = clock
        self._spent = self._sum()
        self._asked = clock()

    def __call__(self) -> float:
        """Returns the average since the last call, or since the start."""
        now, spent = self._clock(), self._sum()
        passed = now - self._asked
        average = (spent - self._spent) / passed if passed > 0 else 0.0
        self._asked, self._spent = now, spent
        return average

    def _sum(self) -> float:
        (family,) = self._durations.collect()
        return sum(sample.value for sample in family.samples if sample.name.endswith("_sum"))
