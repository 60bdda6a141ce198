"""Pictures of a model on its holdout, as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    confusion_matrix,
    precision_recall_curve,
    roc_curve,
)

from everloop_contracts.pipeline import Task
from everloop_trainer.families import Problem
from everloop_trainer.measure import answers

__all__ = ["plots"]


def plots(
    problem: Problem,
    classes: Sequence[str],
    target: npt.NDArray[Any],
    predicted: npt.NDArray[np.float32],
    threshold: float,
    importance: Mapping[str, float],
) -> dict[str, bytes]:
    """What can be seen of a model; PNG by file name.

    Args:
        problem: what was learned.
        classes: labels by position; empty for regression.
        target: class position from 0, or the number.
        predicted: probabilities `[rows, classes]`, or numbers `[rows, 1]`.
        threshold: probability from which a binary answer is the positive class.
        importance: loss by input.
    """
    found = {"importance.png": _importance(importance)}
    if problem.task is Task.REGRESSION:
        found["predicted.png"] = _scatter(target, predicted[:, 0])
        found["residuals.png"] = _residuals(target, predicted[:, 0])
        return found
    found["confusion.png"] = _confusion(classes, target, answers(predicted, threshold))
    if problem.task is Task.BINARY and len(np.unique(target)) == 2:
        scores = predicted[:, 1]
        found["roc.png"] = _roc(target, scores)
        found["precision_recall.png"] = _precision_recall(target, scores)
        found["calibration.png"] = _calibration(target, scores)
    return found


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


def _precision_recall(target: npt.NDArray[Any], scores: npt.NDArray[np.float32]) -> bytes:
    precision, recall, _ = precision_recall_curve(target, scores)
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="Precision and recall on the holdout")
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    axes.axhline(float(target.mean()), color="grey", linewidth=1, linestyle="--")
    axes.plot(recall, precision)
    return _png(figure)


def _confusion(
    classes: Sequence[str], target: npt.NDArray[Any], guess: npt.NDArray[np.intp]
) -> bytes:
    counts = confusion_matrix(target, guess, labels=np.arange(len(classes)))
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="Rows of the holdout by truth and answer")
    ConfusionMatrixDisplay(counts, display_labels=classes).plot(
        ax=axes, cmap="Blues", colorbar=False, include_values=len(classes) <= 12
    )
    return _png(figure)


def _residuals(target: npt.NDArray[Any], predicted: npt.NDArray[np.float32]) -> bytes:
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(title="Residuals on the holdout")
    axes.set(xlabel="actual less predicted", ylabel="rows")
    axes.hist(target - predicted, bins=50)
    axes.axvline(0, color="grey", linewidth=1, linestyle="--")
    return _png(figure)


def _importance(importance: Mapping[str, float]) -> bytes:
    shown = list(importance.items())[:30][::-1]
    figure = Figure(figsize=(6, 1 + len(shown) * 0.25), layout="constrained")
    axes = figure.add_subplot(title="Loss of the metric without an input")
    axes.barh([name for name, _ in shown], [loss for _, loss in shown])
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
