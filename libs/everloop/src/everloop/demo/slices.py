"""How much of the year is replayed, and the pipeline that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from everloop_contracts.pipeline import Pipeline, load_pipeline

__all__ = ["SLICES", "Slice", "write_pipeline"]

PIPELINE_FILE = "flight-delays.yaml"


@dataclass(frozen=True)
class Slice:
    """A part of the year.

    Attributes:
        days_per_month: Only the first days of each month; None for all.
        rate: Flights per second that the client asks about.
        changes: What is changed in the pipeline's file, nested as the file is.
    """

    days_per_month: int | None
    rate: float
    changes: Mapping[str, Any] = field(default_factory=dict)


SLICES: Mapping[str, Slice] = {
    "year": Slice(days_per_month=None, rate=1400),
    "small": Slice(
        days_per_month=6,
        rate=450,
        changes={
            "training": {
                "search": {"trials": 3, "time_budget": "30s"},
                "triggers": {"min_rows": 5000},
            },
            "promotion": {"gates": [{"kind": "export_parity", "max_difference": 0.0001}]},
            "monitoring": {
                "chunk_rows": 1500,
                "performance": {"metric": "roc_auc", "max_loss": 0.03},
            },
        },
    ),
}


def write_pipeline(source: Path, folder: Path, part: Slice) -> Pipeline:
    """Writes the pipeline of a slice into a folder of its own and returns it.

    Raises:
        PipelineError: The file is missing or broken.
    """
    load_pipeline(source / PIPELINE_FILE)  # an error names the user's file, not the copy
    document = yaml.safe_load((source / PIPELINE_FILE).read_text(encoding="utf-8"))
    _change(document, part.changes)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / PIPELINE_FILE
    target.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    return load_pipeline(target)


def _change(document: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(document.get(key), dict):
            _change(document[key], value)
        else:
            document[key] = value
