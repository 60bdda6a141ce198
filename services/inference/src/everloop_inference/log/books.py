"""The books of the prediction log: every predicted row is in exactly one place, at any moment."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Books", "Counts"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Rows of one model; `served + adopted = logged + spilled + dropped + buffered + unsampled`.

    Attributes:
        served: predicted by this replica, whether somebody was answered with it or not.
        adopted: found on disk at start, left by a replica that is gone.
        logged: acknowledged by the broker.
        spilled: on disk now.
        dropped: given up: buffer or disk were full, the broker refused them, or they were damaged.
        buffered: in memory now.
        unsampled: left out because the pipeline logs a sample.
    """

    served: int = 0
    adopted: int = 0
    logged: int = 0
    spilled: int = 0
    dropped: int = 0
    buffered: int = 0
    unsampled: int = 0

    @property
    def balanced(self) -> bool:
        """Whether the sum holds."""
        settled = self.logged + self.spilled + self.dropped + self.buffered + self.unsampled
        return self.served + self.adopted == settled


_NAMES = tuple(field.name for field in fields(Counts))
_NOW = frozenset({"spilled", "buffered"})


class Books(Collector):
    """Counts per model, changed and read under one lock, so that the sum holds in every scrape."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._lock = threading.Lock()
        self._counts: dict[str, dict[str, int]] = {}

    def move(self, model: str, **rows: int) -> None:
        """Adds to (or, with a negative number, takes from) the named counts at once."""
        with self._lock:
            counts = self._counts.get(model)
            if counts is None:
                counts = self._counts[model] = dict.fromkeys(_NAMES, 0)
            for name, number in rows.items():
                counts[name] += number

    def counts(self, model: str) -> Counts:
        """Returns the counts of a model."""
        with self._lock:
            return Counts(**self._counts.get(model, {}))

    def collect(self) -> Iterator[Metric]:
        """Gives the counts to Prometheus."""
        with self._lock:
            counts = {model: Counts(**values) for model, values in self._counts.items()}
        for name in _NAMES:
            make = GaugeMetricFamily if name in _NOW else CounterMetricFamily
            family: GaugeMetricFamily | CounterMetricFamily = make(
                f"everloop_inference_log_{name}_rows",
                f"Rows of the prediction log: {name}.",
                labels=["model"],
            )
            for model, values in counts.items():
                family.add_metric([model], getattr(values, name))
            yield family
