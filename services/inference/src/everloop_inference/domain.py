"""What is served and what it answers; knows no transport, broker or supervisor."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from onnxruntime import InferenceSession

from everloop_contracts.pipeline import Pipeline, Task
from everloop_features.inputs import Feeds, InputSpec

__all__ = ["Answer", "ServedModel", "ServingPolicy", "Wanted"]


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """What a pipeline says about serving its model.

    Attributes:
        id_field: field of a record that holds its id; empty where the pipeline is not known here.
        max_rows: rows that one request may hold.
        log_sample: share of predictions that are logged.
    """

    id_field: str = ""
    max_rows: int = 4096
    log_sample: float = 1.0

    @classmethod
    def of(cls, pipeline: Pipeline) -> ServingPolicy:
        """Reads it from the pipeline's specification."""
        serving = pipeline.serving
        return cls(pipeline.schema_.id, serving.max_batch_rows, serving.log.sample)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that should be served.

    Attributes:
        model: name of the model.
        version: its number in the registry.
        run_id: MLflow run that holds the artifact.
        sha256: SHA-256 of the ONNX file, hexadecimal, as the registry knows it.
    """

    model: str
    version: int
    run_id: str
    sha256: str


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version, loaded, verified and warm; never changes.

    Attributes:
        wanted: the version.
        task: what it predicts.
        classes: labels in the order of the probabilities; empty for regression.
        inputs: raw columns that it takes.
        threshold: probability from which a binary answer is the positive class.
        policy: what its pipeline says about serving.
        session: the graph, with one thread of its own.
        input_bytes: memory that one request's arrays take besides its values, in bytes.
        since: when it began to serve in this replica.
        previous_version: version that it replaced; 0 if none.
    """

    wanted: Wanted
    task: Task
    classes: tuple[str, ...]
    inputs: tuple[InputSpec, ...]
    threshold: float
    policy: ServingPolicy
    session: InferenceSession
    input_bytes: int
    since: datetime
    previous_version: int = 0

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.wanted.model

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.wanted.version

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """Runs the graph.

        Args:
            feeds: one array `[rows, 1]` per input.

        Returns:
            Probabilities `[rows, classes]`, or the predicted numbers `[rows, 1]` for regression.
        """
        outputs: list[Any] = self.session.run(None, feeds)
        result: npt.NDArray[np.float32] = outputs[0]
        return result


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said about the rows of one request.

    Attributes:
        model: the version that answered.
        prediction_ids: one per row, unique for ever.
        labels: one class label per row; empty for regression.
        scores: per row the predicted number, or the probability of the positive class; zeros for multiclass.
        probabilities: `[rows, classes]`; `[rows, 0]` for regression.
    """

    model: ServedModel
    prediction_ids: list[str]
    labels: list[str]
    scores: list[float]
    probabilities: npt.NDArray[np.float32]
