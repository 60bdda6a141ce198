"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.domain import Readings, Rows

__all__ = ["Detector", "Detectors", "References"]


class References(Protocol):
    """Where reference samples are kept."""

    def load(self, run_id: str) -> bytes:
        """The Parquet file `everloop/reference.parquet` of an MLflow run.

        Raises:
            EverloopError: kind not_found if the run has none, unavailable if the store does not answer.
        """


class Detector(Protocol):
    """Calculators fitted on the reference sample of one model version."""

    def read(self, rows: Rows) -> Readings:
        """Compares a chunk with the reference sample."""

    def changed(self, rows: Rows) -> dict[str, int]:
        """Features, and `score`, that left the reference sample within these rows, and after how many values."""

    def realised(self, rows: Rows, actuals: Sequence[str | None]) -> Readings:
        """Measures the performance on the rows whose label is known; no reading of what is not defined on them."""


class Detectors(Protocol):
    """Fits detectors and keeps them."""

    def prepare(self) -> None:
        """Loads what is slow to load; called once, on the thread that evaluates."""

    def fitted(self, pipeline: Pipeline, version: int, run_id: str) -> Detector:
        """The detector of a model version.

        Raises:
            EverloopError: the reference sample cannot be had.
        """
