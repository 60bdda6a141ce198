"""Records of 1 KB, and small ones: readings of a machine's sensors, as a pipeline of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import orjson

from everloop_contracts.pipeline import Pipeline

__all__ = ["PARTITIONS", "SENSORS", "SMALL", "readings", "specification", "topic"]

PARTITIONS = 4
SENSORS = 30
"""Of a record of 1 KB."""
SMALL = 3
"""Sensors of a record of 0.2 KB."""
START = datetime(2026, 1, 1, tzinfo=UTC)


def specification(name: str, sensors: int) -> dict[str, object]:
    """The pipeline: every kind of field, limits on each, no version cut by itself."""
    fields: dict[str, dict[str, object]] = {
        "reading_id": {"type": "string"},
        "measured_at": {"type": "timestamp"},
        "site": {"type": "string", "categories": [f"site-{n}" for n in range(20)]},
        "device": {"type": "string", "max_length": 20},
        "firmware": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "cycles": {"type": "int", "min": 0},
        "healthy": {"type": "bool"},
    }
    for name_ in _sensors(sensors):
        fields[name_] = {"type": "float", "nullable": True, "min": -1000, "max": 1000}
    fields["failed"] = {"type": "bool", "nullable": True}
    return {
        "pipeline": name,
        "partitions": PARTITIONS,
        "schema": {"id": "reading_id", "time": "measured_at", "fields": fields},
        "target": {"field": "failed", "task": "binary"},
        "features": {"cycles": {"kind": "number", "of": "cycles"}},
        "cut": {"rows": 2**31, "age": "30d"},
        "training": {"families": ["logistic_regression"]},
    }


def topic(name: str) -> str:
    """Where the pipeline's records go."""
    return Pipeline.model_validate(specification(name, SMALL)).record_topic


def readings(count: int, sensors: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and bodies of valid records, the same every time; each id once, times a little out of order."""
    generator = random.Random(count)
    names = _sensors(sensors)
    for number in range(count):
        record_id = f"reading-{number:010d}"
        time = START + timedelta(seconds=number + generator.randrange(60))
        record = {
            "reading_id": record_id,
            "measured_at": time.isoformat(),
            "site": f"site-{number % 20}",
            "device": f"device-{number % 997}",
            "firmware": "3.1.4",
            "cycles": number,
            "healthy": number % 3 > 0,
        }
        record |= {name: round(generator.uniform(-1000, 1000), 3) for name in names}
        yield record_id.encode(), orjson.dumps(record | {"failed": number % 7 == 0})


def _sensors(count: int) -> list[str]:
    return [f"sensor_reading_{number:02d}" for number in range(count)]
