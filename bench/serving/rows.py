"""The row that is asked about."""

from __future__ import annotations

import json
from typing import Any

from everloop.demo import flights

__all__ = ["sample_row"]


def sample_row() -> dict[str, Any]:
    """Returns a flight of which everything but its gust is known, as a JSON object without its label."""
    rows = (json.loads(line) for line in flights.load(1).lines)
    return next(
        row
        for row in rows
        if all(value is not None for key, value in row.items() if key != "wind_gust")
    )
