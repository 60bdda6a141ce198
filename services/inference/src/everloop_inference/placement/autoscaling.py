"""How many replicas there should be, by the requests that they say they hold; Ray Serve's controller asks."""

from __future__ import annotations

from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["ONGOING", "policy"]

ONGOING = "ongoing"
"""Name under which a replica reports."""


def policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Wants so many replicas that each has as many requests as it should have.

    Requests come past Ray, which therefore counts none by itself. Ray Serve applies the bounds and the delays.
    """
    reports = (context.aggregated_metrics or {}).get(ONGOING) or {}
    if not reports:
        return context.target_num_replicas, {}
    assert context.config is not None
    return sum(reports.values()) / context.config.get_target_ongoing_requests(), {}
