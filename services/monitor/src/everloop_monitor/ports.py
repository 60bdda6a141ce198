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

    @property
    def reference(self) -> float | None:
        """The pipeline's metric on the reference sample; None where the task has none."""

    def read(self, rows: Rows) -> Readings:
        """Compares a chunk with the reference sample."""

    def realised(self, rows: Rows, actuals: Sequence[str | None]) -> float | None:
        """The pipeline's metric on the rows whose label is known; None where it is not defined."""


class Detectors(Protocol):
    """Fits detectors and keeps them."""

    def prepare(self) -> None:
        """Loads what is slow to load; called once, on the thread that evaluates."""

    def fitted(self, pipeline: Pipeline, version: int, run_id: str) -> Detector:
        """The detector of a model version.

        Raises:
            EverloopError: the reference sample cannot be had.
        """
