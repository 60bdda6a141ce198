"""Fitting features, estimator and calibrator on rows; the fitted model and its export give the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from everloop_contracts.pipeline import Costs, Pipeline
from everloop_features import FittedFeatures, fit
from everloop_features.graph import compose_model, feature_graph
from everloop_trainer.calibrate import Calibrator, calibrate
from everloop_trainer.class_weights import weights_of
from everloop_trainer.families import Params, load_family
from everloop_trainer.families.classes import spread
from everloop_trainer.rows import Rows
from everloop_trainer.threads import threads

__all__ = ["THRESHOLD", "Decision", "Learned", "Predictions", "cheapest", "decide", "learn", "tune"]

THRESHOLD: Final = 0.5
TUNING_SHARE: Final = 0.25
"""Newest share of the rows that calibrator and threshold are fitted on, where a model is to be judged with them."""

Predictions = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Decision:
    """What is between an estimator's probabilities and an answer.

    Attributes:
        calibrator: None where the probabilities stay as they are.
        threshold: probability from which a binary answer is `true`.
    """

    calibrator: Calibrator | None = None
    threshold: float = THRESHOLD


@dataclass(frozen=True, slots=True)
class Learned:
    """A fitted model.

    Attributes:
        onnx: from raw columns to the output.
        predict: the fitted model itself: probabilities `[rows, classes]`, or numbers `[rows, 1]`.
        raw: the same before calibration.
    """

    onnx: onnx.ModelProto
    predict: Callable[[Mapping[str, Any]], Predictions]
    raw: Callable[[Mapping[str, Any]], Predictions]


def learn(pipeline: Pipeline, rows: Rows, name: str, params: Params, decision: Decision) -> Learned:
    """Fits a family's model on rows, and puts a calibrator behind it."""
    family, problem = load_family(name), rows.problem
    features: FittedFeatures = fit(pipeline, rows.feeds, rows.target)
    matrix = features.transform(rows.feeds, family.encoding)
    weights = weights_of(pipeline, rows.target)
    with threadpool_limits(threads()):
        model = family.fit(
            problem, matrix, rows.target, params, pipeline.training.seed, weights=weights
        )
    estimator = family.to_onnx(problem, model, matrix.shape[1])
    calibrator = decision.calibrator
    if calibrator:
        estimator = calibrator.attach(estimator)

    def raw(feeds: Mapping[str, Any]) -> Predictions:
        answered = family.predict(problem, model, features.transform(dict(feeds), family.encoding))
        return spread(problem, rows.target, answered)

    def predict(feeds: Mapping[str, Any]) -> Predictions:
        return calibrator(raw(feeds)) if calibrator else raw(feeds)

    return Learned(compose_model(feature_graph(features, family.encoding), estimator), predict, raw)


def tune(pipeline: Pipeline, rows: Rows, name: str, params: Params) -> Decision:
    """Calibrator and threshold from the newest of the rows, by a model of the older ones; fits nothing needlessly."""
    if pipeline.training.calibration == "none" and pipeline.training.costs is None:
        return Decision()
    older, newer = rows.split(TUNING_SHARE)
    return decide(
        pipeline, newer.target, learn(pipeline, older, name, params, Decision()).raw(newer.feeds)
    )


def decide(pipeline: Pipeline, target: npt.NDArray[Any], raw: Predictions) -> Decision:
    """Calibrator and threshold from what an uncalibrated model said about rows that did not teach it."""
    training = pipeline.training
    calibrator = calibrate(training.calibration, target, raw)
    if training.costs is None:
        return Decision(calibrator)
    scores = (calibrator(raw) if calibrator else raw)[:, 1]
    return Decision(calibrator, cheapest(training.costs, target, scores))


def cheapest(costs: Costs, target: npt.NDArray[Any], scores: Predictions) -> float:
    """The threshold at which the answers for these rows cost least.

    Args:
        costs: of the two kinds of error.
        target: 0 or 1 for each row.
        scores: probability of 1.

    Example:
        >>> cheapest(Costs(false_negative=9), np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.4, 0.6]))
        0.15000000000000002
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order].astype(np.float64)
    positive = target[order].astype(np.float64)
    # Cost where the first k rows are called true, k from none to all.
    false_positives = np.concatenate([[0.0], np.cumsum(1 - positive)])
    false_negatives = positive.sum() - np.concatenate([[0.0], np.cumsum(positive)])
    cost = costs.false_positive * false_positives + costs.false_negative * false_negatives
    # A threshold parts two rows only where their scores differ.
    parts = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])
    best = int(np.flatnonzero(parts)[np.argmin(cost[parts])])
    above = ranked[best - 1] if best else 1.0
    below = ranked[best] if best < len(ranked) else 0.0
    return float((above + below) / 2)
