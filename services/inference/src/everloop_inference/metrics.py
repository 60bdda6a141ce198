"""Every metric of the service, declared once."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "DEPLOYS",
    "ERRORS",
    "GRPC_CLOSED",
    "LATENCY",
    "LOAD_FAILURES",
    "REGISTRY_UP",
    "REQUESTS",
    "ROWS",
    "SERVED_VERSION",
    "SWAPS",
    "UP",
]

# A prediction takes tens of microseconds; what is above a second is one bucket.
BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)

REQUESTS = Counter(
    "everloop_inference_requests", "Prediction requests that were answered.", ["door", "model"]
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
GRPC_CLOSED = Counter(
    "everloop_inference_grpc_closed_connections",
    "gRPC connections that were closed on their callers.",
    ["reason"],
)
SERVED_VERSION = Gauge(
    "everloop_inference_served_version", "Version of a model that serves here.", ["model"]
)
SWAPS = Counter("everloop_inference_swaps", "Versions that began to serve.", ["model"])
LOAD_FAILURES = Counter(
    "everloop_inference_load_failures",
    "Attempts to load a version that failed; the version before it goes on serving.",
    ["model", "reason"],
)
REGISTRY_UP = Gauge(
    "everloop_inference_registry_up", "1 if the registry gateway answered the last time."
)
UP = Gauge("everloop_inference_data_plane_up", "1 if the data plane answered the last time.")
DEPLOYS = Counter(
    "everloop_inference_deploys", "Attempts to place the replicas on Ray.", ["outcome"]
)
