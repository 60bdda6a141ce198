"""What both versions of a trial do, for Prometheus: read from the trials when somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from everloop_contracts.latency import BUCKETS, bucket_limit
from everloop_inference.domain import ArmStats
from everloop_inference.models.swap import Models

__all__ = ["TrialMetrics"]

_LABELS = ["model", "arm"]
_STEP = 4
"""Buckets that are shown as one: bounds double."""


class TrialMetrics(Collector):
    """Series of a model exist while one of its versions is on trial, and begin at 0 with every trial."""

    def __init__(self, models: Models) -> None:
        """Takes what knows the trials."""
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """Gives the totals to Prometheus."""
        version = GaugeMetricFamily(
            "everloop_inference_trial_version",
            "Version of a trial that serves here.",
            labels=_LABELS,
        )
        requests, errors, rows = (
            CounterMetricFamily(f"everloop_inference_trial_{name}", text, labels=_LABELS)
            for name, text in (
                ("requests", "Requests that a version of a trial predicted or failed."),
                (
                    "errors",
                    "Requests that a version of a trial failed; the other one answered them.",
                ),
                ("rows", "Rows that a version of a trial predicted."),
            )
        )
        duration = HistogramMetricFamily(
            "everloop_inference_trial_duration_seconds",
            "Time that the version took to run the batch that a request was in.",
            labels=_LABELS,
        )
        for name, on in self._models.trials.items():
            for arm, model, stats in (
                ("candidate", on.candidate, on.candidate_arm.stats()),
                ("baseline", on.baseline, on.baseline_arm.stats()),
            ):
                labels = [name, arm]
                version.add_metric(labels, model.version)
                requests.add_metric(labels, stats.requests)
                errors.add_metric(labels, stats.errors)
                rows.add_metric(labels, stats.rows)
                duration.add_metric(labels, buckets=_buckets(stats), sum_value=None)
        yield from (version, requests, errors, rows, duration)


def _buckets(stats: ArmStats) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound in seconds."""
    counts = list(accumulate(stats.latency_counts))
    shown = range(0, BUCKETS - 1, _STEP)
    return [
        *((f"{bucket_limit(index):.6g}", float(counts[index])) for index in shown),
        ("+Inf", float(counts[-1])),
    ]
