"""What each of the two versions of a trial does in this replica."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

from everloop_contracts.latency import BUCKETS, bucket_limit
from everloop_inference.domain import ArmStats

__all__ = ["Arm"]

# The last bucket holds what is longer as well.
_LIMITS: Final = tuple(bucket_limit(bucket) for bucket in range(BUCKETS - 1))


class Arm:
    """Counts one version; written by the event loop once per batch, read by other threads.

    >>> arm = Arm()
    >>> arm.predicted([50e-6, 51e-6, 1000.0], rows=7)
    >>> arm.failed()
    >>> stats = arm.stats()
    >>> stats.requests, stats.errors, stats.rows, stats.latency_counts[:3], stats.latency_counts[63]
    (4, 1, 7, (1, 1, 0), 1)
    """

    __slots__ = ("_errors", "_latency", "_lock", "_requests", "_rows")

    def __init__(self) -> None:
        """Nothing has happened yet."""
        self._lock = threading.Lock()
        self._requests = self._errors = self._rows = 0
        self._latency = [0] * BUCKETS

    def predicted(self, seconds: Iterable[float], rows: int) -> None:
        """Counts requests that ran together.

        Args:
            seconds: how long the run of each of them took.
            rows: rows of all of them.
        """
        buckets = [bisect_left(_LIMITS, value) for value in seconds]
        with self._lock:
            self._requests += len(buckets)
            self._rows += rows
            for bucket in buckets:
                self._latency[bucket] += 1

    def failed(self) -> None:
        """Counts a request that the version failed."""
        with self._lock:
            self._requests += 1
            self._errors += 1

    def stats(self) -> ArmStats:
        """The totals, all of one moment."""
        with self._lock:
            return ArmStats(self._requests, self._errors, self._rows, tuple(self._latency))
