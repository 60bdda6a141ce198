"""What a training needs from outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import pyarrow as pa

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Dataset, Trained, Training

__all__ = [
    "FILES",
    "SCORES",
    "Artifacts",
    "Cutter",
    "Datasets",
    "Incumbent",
    "Production",
    "Tracking",
]


class Datasets(Protocol):
    """Where dataset versions are."""

    def fetch(self, dataset: Dataset) -> pa.Table:
        """All rows of a version, its files verified.

        Raises:
            TrainingError: a file's content is not the one tracked.
            EverloopError: kind unavailable while a file cannot be read; kind not_found if it is not there.
        """


QUARANTINED: Final = "DATASET_QUARANTINED"
"""Reason of a dataset version that is not to be trained on."""


class Cutter(Protocol):
    """Who cuts dataset versions."""

    def cut(self, pipeline: str, request_id: str) -> Dataset:
        """A version with everything that has arrived; the same one for the same `request_id`.

        Raises:
            EverloopError: kind unavailable while it cannot be reached; kind precondition, reason `QUARANTINED`: the
                version did not pass its checks, and is announced for this request if somebody releases it.
        """


@dataclass(frozen=True, slots=True)
class Incumbent:
    """The model in Production.

    Attributes:
        version: its number.
        onnx: what serves.
        manifest: what was written down about it.
        scores: `record_id` and `candidate`: what it said about the rows that it was judged on, before it learned from
            those as well; None where nobody wrote that down.
    """

    version: int
    onnx: bytes
    manifest: Mapping[str, Any]
    scores: pa.Table | None = None


class Production(Protocol):
    """Which model serves."""

    def incumbent(self, model: str) -> Incumbent | None:
        """The Production version of a model, None if nothing serves.

        Raises:
            EverloopError: kind unavailable while it cannot be reached.
        """


FILES: Final = "everloop"
"""Folder of a run's artifacts that holds what belongs to its model."""
SCORES: Final = "scores.parquet"
"""File in it with what both models said about each row of the holdout."""


@dataclass(frozen=True, slots=True)
class Artifacts:
    """What is logged with a model: files by their path below `FILES`, the model itself, and inputs of one row."""

    onnx: bytes
    files: Mapping[str, bytes]
    example: Mapping[str, Any] | None = None


class Tracking(Protocol):
    """The books of every training and trial.

    Every method raises EverloopError, kind unavailable, while the books or the store of their files are away.
    """

    def open_run(self, training: Training) -> str:
        """The run of a training, by its id: the same one after a crash."""

    def log_trial(
        self,
        run_id: str,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Writes one ended trial down as a child of the run, with its metrics on the way by `budget`."""

    def finished(self, run_id: str) -> Trained | None:
        """What an earlier attempt logged completely, if one did; its run has ended then."""

    def winner_before(self, training: Training) -> tuple[str, dict[str, Any]] | None:
        """Family and parameters of the pipeline's newest model before this training; None where there is none."""

    def log_model(
        self,
        run_id: str,
        pipeline: Pipeline,
        params: Mapping[str, Any],
        artifacts: Artifacts,
        trained: Trained,
    ) -> Trained:
        """Logs the model and its artifacts, and last of all `trained`; returns it with the model's address."""

    def fail(self, training: Training) -> None:
        """Ends the run of a training as failed; nothing happens if it has none."""

    def kill(self, training: Training) -> None:
        """Ends the run of a training as killed; nothing happens if it has none."""
