"""A pipeline that trains in seconds: which parcels get lost, and some that did."""

from __future__ import annotations

import random
from typing import Any

__all__ = ["NAME", "RECORDS", "pipeline", "records"]

NAME = "parcels"
RECORDS = 400


def pipeline(**further: Any) -> dict[str, Any]:
    """The declaration, with further sections."""
    return {
        "pipeline": NAME,
        "schema": {
            "id": "parcel",
            "time": "sent",
            "fields": {
                "parcel": {"type": "string"},
                "sent": {"type": "timestamp", "timezone": "UTC"},
                "weight": {"type": "float"},
                "lost": {"type": "bool", "nullable": True},
            },
        },
        "target": {"field": "lost", "task": "binary"},
        "features": {"weight": {"kind": "number", "of": "weight"}},
        "training": {
            "families": ["logistic_regression"],
            "search": {"trials": 1},
            "triggers": {"min_rows": 100},
        },
    } | further


def records() -> list[dict[str, Any]]:
    """`RECORDS` labelled parcels, the same ones every time."""
    generator = random.Random(7)
    weights = [generator.uniform(0, 10) for _ in range(RECORDS)]
    return [
        {
            "parcel": f"p{number}",
            "sent": f"2026-03-01T{number // 60:02}:{number % 60:02}:00Z",
            "weight": weight,
            "lost": weight + generator.gauss(0, 1) > 5,
        }
        for number, weight in enumerate(weights)
    ]
