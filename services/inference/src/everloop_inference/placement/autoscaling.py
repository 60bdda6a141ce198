"""How many replicas there should be, by the requests that they say they hold; Ray Serve's controller asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.config import AutoscalingContext

__all__ = ["ONGOING", "policy", "pool_policy"]

ONGOING = "ongoing"
"""Name under which a replica reports."""


def policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Wants so many replicas that each has as many requests as it should have.

    Requests come past Ray, which therefore counts none by itself. Ray Serve applies the bounds and the delays.
    """
    reports = _reports(context)
    if not reports:
        return context.target_num_replicas, {}
    assert context.config is not None
    return sum(reports.values()) / context.config.get_target_ongoing_requests(), {}


def pool_policy(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """As Ray Serve's own policy, but that a pool which is asked is not idle.

    Ray Serve counts what it passes on, but looks only now and then: cheap requests are over by then, however many come.
    What the replicas say is above nothing as soon as one has come.
    """
    assert context.config is not None
    asked = any(_reports(context).values())
    wanted = context.total_num_requests / context.config.get_target_ongoing_requests()
    return max(wanted, float(asked)), {}


def _reports(context: AutoscalingContext) -> Mapping[Any, float]:
    """What each replica says; nothing before the first has spoken."""
    return (context.aggregated_metrics or {}).get(ONGOING) or {}
