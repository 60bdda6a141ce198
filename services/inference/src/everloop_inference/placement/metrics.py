"""Metrics of the service process; whoever imports them exports them, which a replica must not."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

__all__ = ["DEPLOYS", "UP"]

UP = Gauge("everloop_inference_data_plane_up", "1 if the data plane answered the last time.")
DEPLOYS = Counter(
    "everloop_inference_deploys", "Attempts to place the replicas on Ray.", ["outcome"]
)
