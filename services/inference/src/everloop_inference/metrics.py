"""Metrics of a replica, each declared once.

Others lie with what they are read from: the prediction log's in `books.py`, those of trials in `rollouts/metrics.py`.
The service process has its own, in `placement/metrics.py`.
"""

from __future__ import annotations

import time
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "BATCH_ROWS",
    "DROPPED",
    "ERRORS",
    "EXPLAINED",
    "GRPC_CLOSED",
    "LATENCY",
    "LOAD_FAILURES",
    "MIRRORS_DROPPED",
    "PASSED",
    "PASSED_SECONDS",
    "POOL_VERSION",
    "REGISTRY_UP",
    "REQUESTS",
    "ROWS",
    "SERVED_VERSION",
    "SLOW",
    "SWAPS",
    "Door",
    "count_batch",
]

# A prediction takes tens of microseconds; what is above a second is one bucket.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

REQUESTS = Counter(
    "everloop_inference_requests", "Prediction requests that were answered.", ["door", "model"]
)
BATCH_ROWS = Histogram(
    "everloop_inference_batch_rows",
    "Rows that ran together.",
    ["model"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)
DROPPED = Counter(
    "everloop_inference_dropped_requests",
    "Requests that were given up before they ran: overloaded, deadline, or gone (the caller).",
    ["model", "reason"],
)
ROWS = Counter("everloop_inference_rows", "Rows that were predicted.", ["model"])
ERRORS = Counter(
    "everloop_inference_errors", "Requests that were refused or failed.", ["door", "reason"]
)
LATENCY = Histogram(
    "everloop_inference_duration_seconds",
    "Time from a complete request to its answer, inside the replica.",
    ["door"],
    buckets=BUCKETS,
)
EXPLAINED = Counter("everloop_inference_explained_rows", "Rows that were explained.", ["model"])
GRPC_CLOSED = Counter(
    "everloop_inference_grpc_closed_connections",
    "gRPC connections that were closed on their callers.",
    ["reason"],
)
SERVED_VERSION = Gauge(
    "everloop_inference_served_version", "Version of a model that serves here.", ["model"]
)
SLOW = Gauge(
    "everloop_inference_slow_model",
    "1 for a model whose version is served as it was logged, by mlflow.pyfunc, and not by its export.",
    ["model"],
)
SWAPS = Counter("everloop_inference_swaps", "Versions that began to serve.", ["model"])
LOAD_FAILURES = Counter(
    "everloop_inference_load_failures",
    "Attempts to load a version that failed; the version before it goes on serving.",
    ["model", "reason"],
)
MIRRORS_DROPPED = Counter(
    "everloop_inference_trial_dropped_mirrors",
    "Requests that a version on trial should have predicted unseen, given up because too much waited.",
    ["model"],
)
PASSED = Counter(
    "everloop_inference_passed_requests",
    "Requests for a model in a pool that were passed on there: answered (an error is an answer), refused, failed.",
    ["model", "outcome"],
)
PASSED_SECONDS = Histogram(
    "everloop_inference_passed_duration_seconds",
    "Time from passing a request on to its answer; a pool that starts takes seconds.",
    ["model"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
POOL_VERSION = Gauge(
    "everloop_inference_pool_version", "Version of a model that its pool should serve.", ["model"]
)
REGISTRY_UP = Gauge(
    "everloop_inference_registry_up", "1 if the registry gateway answered the last time."
)


# Finding a metric by its labels costs as much as counting: what counts for every request keeps what it found.
_rows = cache(ROWS.labels)
_batch_rows = cache(BATCH_ROWS.labels)


def count_batch(model: str, rows: int) -> None:
    """Counts rows of a model that ran together."""
    _rows(model).inc(rows)
    _batch_rows(model).observe(rows)


class Door:
    """Counts what one door answers and refuses."""

    def __init__(self, name: str) -> None:
        """Takes the value of the label `door`."""
        self._name = name
        self._latency = LATENCY.labels(name)
        self._requests = cache(lambda model: REQUESTS.labels(name, model))

    def answered(self, model: str, began: float) -> None:
        """Counts a request that was complete at a time of `time.perf_counter`, and is answered now."""
        self._requests(model).inc()
        self._latency.observe(time.perf_counter() - began)

    def refused(self, reason: str) -> None:
        """Counts a request that was refused or failed."""
        ERRORS.labels(self._name, reason).inc()
