"""What a Prometheus of the embedded stack answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httpx

from everloop.stack.endpoints import Endpoints

__all__ = ["ask", "series"]


def ask(endpoints: Endpoints, query: str) -> list[dict[str, Any]]:
    """The series of an instant query."""
    answer = httpx.get(
        f"http://127.0.0.1:{endpoints.ports['prometheus']}/api/v1/query",
        params={"query": query},
        trust_env=False,
    )
    answer.raise_for_status()
    found: list[dict[str, Any]] = answer.json()["data"]["result"]
    return found


def series(endpoints: Endpoints, queries: Iterable[str]) -> dict[str, int]:
    """Query to how many series it returns."""
    return {query: len(ask(endpoints, query)) for query in queries}
