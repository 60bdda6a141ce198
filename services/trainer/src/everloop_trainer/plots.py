"""Pictures of a model on its holdout, as PNG."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from everloop_contracts.pipeline import Task
from everloop_trainer.families import Problem

__all__ = ["plots"]


def plots(
    problem: Problem, target: npt.NDArray[Any], predicted: npt.NDArray[np.float32]
) -> dict[str, bytes]:
    """ROC and calibration for two classes, predicted against actual for numbers; PNG by file name."""
    if problem.task is Task.BINARY and len(np.unique(target)) == 2:
        scores = predicted[:, 1]
        return {"roc.png": _roc(target, scores), "calibration.png": _calibration(target, scores)}
    if problem.task is Task.REGRESSION:
        return {"predicted.png": _scatter(target, predicted[:, 0])}
    return {}


def _roc(target: npt.NDArray[Any], scores: npt.NDArray[np.float32]) -> bytes:
    false_rate, true_rate, _ = roc_curve(target, scores)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="ROC on the holdout")
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.plot(false_rate, true_rate)
    return _png(figure)


def _calibration(target: npt.NDArray[Any], scores: npt.NDArray[np.float32]) -> bytes:
    order = np.argsort(scores)
    bins = [part for part in np.array_split(order, 10) if len(part)]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="Calibration on the holdout, by tenths of the rows")
    axes.set(xlabel="mean predicted probability", ylabel="share of positives")
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    axes.plot([scores[p].mean() for p in bins], [target[p].mean() for p in bins], marker="o")
    return _png(figure)


def _scatter(target: npt.NDArray[Any], predicted: npt.NDArray[np.float32]) -> bytes:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="Predicted against actual on the holdout")
    axes.set(xlabel="actual", ylabel="predicted")
    axes.scatter(target[-5000:], predicted[-5000:], s=4, alpha=0.4)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=100)
    return sink.getvalue()
