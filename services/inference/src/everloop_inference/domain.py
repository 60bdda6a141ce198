"""What is served and what it answers; knows no transport, broker or supervisor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from everloop_contracts.latency import BUCKETS
from everloop_contracts.pipeline import Pipeline, Task
from everloop_features.inputs import Block, Feeds, InputSpec, Layout
from everloop_inference.cost import Cost
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "Answer",
    "ArmStats",
    "Call",
    "Engine",
    "EngineKind",
    "PoolPolicy",
    "Production",
    "ServedModel",
    "ServingPolicy",
    "Strategy",
    "Trial",
    "Wanted",
    "no_model",
]


def no_model(name: str) -> EverloopError:
    """What a caller is told who asks for a model that serves nowhere here."""
    message = f"no model '{name}' is served here"
    return EverloopError(Kind.NOT_FOUND, "MODEL_NOT_FOUND", message, model=name)


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """Replicas that serve one model and no other.

    Attributes:
        min_replicas: how many there always are; with 0 the first request waits for one.
        max_replicas: how many there may be.
        ongoing_requests: requests that one of them should have at a time.
        idle_seconds: time without a request after which the last one goes.
    """

    min_replicas: int
    max_replicas: int
    ongoing_requests: float
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class ServingPolicy:
    """What a pipeline says about serving its model.

    Attributes:
        id_field: field of a record that holds its id; empty where the pipeline is not known here.
        max_rows: rows that one request may hold.
        batch_seconds: time that a request may wait for those that share its batch.
        batch_rows: rows that such a batch may hold.
        log_sample: share of predictions that are logged.
        log_redact: inputs whose values are not logged.
        fields: fields of the pipeline's schema, the only ones that a row may hold besides the model's inputs; empty
            where the pipeline is not known here, and then a row may hold anything.
        pool: the model's own replicas; None where it shares those of the others.
    """

    id_field: str = ""
    max_rows: int = 4096
    batch_seconds: float = 0.005
    batch_rows: int = 1024
    log_sample: float = 1.0
    log_redact: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    pool: PoolPolicy | None = None

    @classmethod
    def of(cls, pipeline: Pipeline) -> ServingPolicy:
        """Reads it from the pipeline's specification."""
        serving = pipeline.serving
        pool = serving.pool
        return cls(
            id_field=pipeline.schema_.id,
            max_rows=serving.max_batch_rows,
            batch_seconds=serving.batch.target.total_seconds(),
            batch_rows=serving.batch.max_rows,
            log_sample=serving.log.sample,
            log_redact=serving.log.redact,
            fields=tuple(pipeline.schema_.fields),
            pool=PoolPolicy(
                pool.min_replicas,
                pool.max_replicas,
                pool.ongoing_requests,
                pool.idle.total_seconds(),
            )
            if pool
            else None,
        )


class Call(NamedTuple):
    """What a door knows about a request besides its content.

    Attributes:
        began: when the request was complete, on the clock of `time.perf_counter`.
        size: bytes that its values took.
        deadline: when its caller stops waiting, on the same clock.
    """

    began: float
    size: int
    deadline: float = math.inf


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that should be served.

    Attributes:
        model: name of the model.
        version: its number in the registry.
        run_id: MLflow run that holds the artifact.
        sha256: SHA-256 of the ONNX file, hexadecimal, as the registry knows it.
        artifact_sha256: SHA-256 of all its files, hexadecimal, as `everloop_contracts.artifacts` makes it; empty where
            the registry knows only that of the ONNX file.
    """

    model: str
    version: int
    run_id: str
    sha256: str
    artifact_sha256: str = ""


class Strategy(StrEnum):
    """What a version on trial does with requests."""

    CANARY = "canary"
    """Answers its share."""
    SHADOW = "shadow"
    """Predicts its share after somebody else has answered, and never answers."""
    AB = "ab"
    """Answers its share; whether it is promoted is up to a person."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A version on trial beside the one in Production.

    Attributes:
        rollout: id of the rollout.
        candidate: the version on trial.
        baseline: number of the version in Production that it is compared with.
        strategy: what the candidate does with requests.
        percent: share of the requests that it gets, 0 to 100.
        key: field whose value decides who gets a request; empty for the record id.
    """

    rollout: str
    candidate: Wanted
    baseline: int
    strategy: Strategy
    percent: float
    key: str = ""

    @property
    def model(self) -> str:
        """Name of the model."""
        return self.candidate.model


@dataclass(frozen=True, slots=True)
class ArmStats:
    """Totals of one version since its trial began in this replica.

    Attributes:
        requests: that it predicted or failed.
        errors: that it failed: its run raised an error, or it refused what the other version took.
        rows: that it predicted.
        latency_counts: the predicted requests by the time that their batch ran, in the buckets of
            `everloop_contracts.latency`.
    """

    requests: int = 0
    errors: int = 0
    rows: int = 0
    latency_counts: tuple[int, ...] = (0,) * BUCKETS


@dataclass(frozen=True, slots=True)
class Production:
    """What a replica should serve.

    Attributes:
        versions: the version in Production of every model.
        trials: versions on trial beside them, at most one for each model.
    """

    versions: Sequence[Wanted]
    trials: Sequence[Trial] = ()


class EngineKind(StrEnum):
    """What runs a model."""

    ONNX = "onnx"
    """The exported graph, by onnxruntime."""
    MLFLOW = "mlflow"
    """The logged model itself, by `mlflow.pyfunc`: slower by orders of magnitude."""


class Engine(Protocol):
    """Runs a loaded model; may be asked by several threads at once.

    Attributes:
        kind: what it is.
    """

    kind: EngineKind

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """See `ServedModel.run`."""


# Compared by identity: the queue of a version finds it in a dictionary with every request.
@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version, loaded, verified and warm; never changes, but for what it has learned about its cost.

    Attributes:
        wanted: the version.
        task: what it predicts.
        classes: labels in the order of the probabilities; empty for regression.
        layout: raw columns that it takes.
        threshold: probability from which a binary answer is the positive class.
        policy: what its pipeline says about serving.
        fields: what a row may hold; anything where empty.
        engine: what runs it.
        cost: what running it takes.
        background: its golden rows, which explanations compare a row with.
        background_output: what it says about them.
        since: when it began to serve in this replica.
        previous_version: version that it replaced; 0 if none.
        shadow: whether it answers nobody: it predicts beside the version that does.
    """

    wanted: Wanted
    task: Task
    classes: tuple[str, ...]
    layout: Layout
    threshold: float
    policy: ServingPolicy
    fields: frozenset[str]
    engine: Engine
    cost: Cost
    background: Block
    background_output: npt.NDArray[np.float32]
    since: datetime
    previous_version: int = 0
    shadow: bool = False

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.wanted.model

    @property
    def version(self) -> int:
        """Number of the version."""
        return self.wanted.version

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """Raw columns that it takes, in order."""
        return self.layout.inputs

    def run(self, feeds: Feeds) -> npt.NDArray[np.float32]:
        """Runs the model.

        Args:
            feeds: one array `[rows, 1]` per input.

        Returns:
            Probabilities `[rows, classes]`, or the predicted numbers `[rows, 1]` for regression.
        """
        return self.engine.run(feeds)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said about some rows: those of a batch, or those of one request.

    Attributes:
        model: the version that answered.
        prediction_ids: one per row, unique for ever.
        labels: one class label per row; empty for regression.
        scores: per row the predicted number, the probability of a binary model's positive class, or that of the
            label of one with more classes.
        probabilities: `[rows, classes]`; `[rows, 0]` for regression.
    """

    model: ServedModel
    prediction_ids: list[str]
    labels: list[str]
    scores: list[float]
    probabilities: npt.NDArray[np.float32]

    def part(self, start: int, stop: int) -> Answer:
        """What it said about the rows of one request of a batch."""
        return Answer(
            self.model,
            self.prediction_ids[start:stop],
            self.labels[start:stop],
            self.scores[start:stop],
            self.probabilities[start:stop],
        )
