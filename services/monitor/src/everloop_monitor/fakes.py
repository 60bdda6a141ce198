"""Fakes of the ports, for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.domain import Condition, Normal, Reading, Readings, Rows
from everloop_monitor.ports import Detector
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["FakeDetector", "FakeDetectors", "FakeReferences"]


class FakeDetector:
    """Reads what is written in the rows: distances are means of the numbers, performances of the scores."""

    def __init__(self, reference: float | None = 0.7) -> None:
        """Takes the metric on the reference sample."""
        self.reference = reference

    def read(self, rows: Rows) -> Readings:
        """The mean of every number is its distance, and the mean score is the estimated performance."""
        distances = [
            Reading("drift", "fake", float(values.mean()), feature=name)
            for name, values in rows.numbers.items()
        ]
        error = Reading("multivariate_drift", "reconstruction_error", 1.0, normal=Normal(1, 1, 9))
        estimated = self._performance("estimated_performance", float(rows.scores.mean()))
        return Readings((*distances, error, *estimated), frozenset({"multivariate_drift"}))

    def changed(self, rows: Rows) -> dict[str, int]:
        """Numbers whose mean is above one half changed with the first row."""
        return {name: 1 for name, values in rows.numbers.items() if values.mean() > 0.5}

    def realised(self, rows: Rows, actuals: Sequence[str | None]) -> Readings:
        """The mean score of the labelled rows."""
        known = [score for score, label in zip(rows.scores, actuals, strict=True) if label]
        if not known:
            return Readings()
        return Readings(self._performance("realised_performance", float(sum(known) / len(known))))

    def _performance(self, condition: Condition, value: float) -> tuple[Reading, ...]:
        return (Reading(condition, "roc_auc", value, reference=self.reference),)


class FakeDetectors:
    """Gives the same detector to every version, but for those that fail."""

    def __init__(self, detector: Detector | None = None) -> None:
        """Takes the detector to give."""
        self.detector = detector or FakeDetector()
        self.failing: set[int] = set()
        self.prepared = 0
        self.asked: list[tuple[str, int, str]] = []

    def prepare(self) -> None:
        """Counts that it was asked to."""
        self.prepared += 1

    def fitted(self, pipeline: Pipeline, version: int, run_id: str) -> Detector:
        """The detector.

        Raises:
            EverloopError: kind unavailable for versions in `failing`.
        """
        self.asked.append((pipeline.name, version, run_id))
        if version in self.failing:
            raise EverloopError(Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", "told to fail")
        return self.detector


class FakeReferences:
    """Reference samples from a dictionary, by run."""

    def __init__(self, samples: Mapping[str, bytes]) -> None:
        """Takes the Parquet file of each run."""
        self.samples = dict(samples)
        self.loaded: list[str] = []

    def load(self, run_id: str) -> bytes:
        """See `References.load`."""
        self.loaded.append(run_id)
        if run_id not in self.samples:
            raise EverloopError(Kind.NOT_FOUND, "REFERENCE_NOT_FOUND", f"no run {run_id}")
        return self.samples[run_id]
