"""The model that benchmarks serve: the flights pipeline's, fitted on real flights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from bench.report import ROOT
from everloop.demo import flights
from everloop_contracts.pipeline import Pipeline, Task, load_pipeline
from everloop_features import Feeds, FittedFeatures, feeds_from_rows, fit, inputs_of
from everloop_features.graph import compose_model, feature_graph
from everloop_trainer.families import Problem, load_family
from everloop_trainer.families.family import Family

TAUGHT_ROWS = 20_000
PIPELINES = ROOT / "pipelines"


@dataclass(frozen=True)
class Taught:
    """Flights with a known outcome, and features fitted on them.

    Attributes:
        rows: as JSON objects, without the label.
        feeds: the same rows as the graph takes them.
        target: 1 where late.
    """

    pipeline: Pipeline
    problem: Problem
    rows: list[dict[str, Any]]
    feeds: Feeds
    target: npt.NDArray[np.int64]
    features: FittedFeatures


def taught() -> Taught:
    """Reads the first flights of every month and fits the pipeline's features on them."""
    pipeline = load_pipeline(PIPELINES / "flight-delays.yaml")
    year = flights.load(3)
    late = np.array(year.late, dtype=float)
    known = np.flatnonzero(~np.isnan(late))[:TAUGHT_ROWS]
    rows = [json.loads(year.lines[row]) for row in known]
    feeds = feeds_from_rows(rows, inputs_of(pipeline))
    target = late[known].astype(np.int64)
    features = fit(pipeline, feeds, target)
    return Taught(pipeline, Problem(Task.BINARY, 2), rows, feeds, target, features)


def fitted(from_: Taught, family_name: str) -> tuple[Family, Any, onnx.ModelProto]:
    """Fits a family with its defaults; returns it, its model, and the graph from raw columns to probabilities."""
    family = load_family(family_name)
    matrix = from_.features.transform(from_.feeds, family.encoding)
    params = {key: item.default for key, item in family.space.items()}
    seed = from_.pipeline.training.seed
    model = family.fit(from_.problem, matrix, from_.target, params, seed)
    estimator = family.to_onnx(from_.problem, model, matrix.shape[1])
    return (
        family,
        model,
        compose_model(feature_graph(from_.features, family.encoding), estimator),
    )
