"""Metrics of predictions, by the names that pipelines use."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from everloop_contracts.pipeline import LOWER_IS_BETTER, Costs, Task
from everloop_trainer.families import Problem

__all__ = ["answers", "measure", "worst"]


def measure(
    problem: Problem,
    target: npt.NDArray[Any],
    predicted: npt.NDArray[np.floating[Any]],
    threshold: float = 0.5,
    costs: Costs | None = None,
) -> dict[str, float]:
    """All metrics of the task; one that is not defined on these rows is left out.

    Args:
        problem: what was learned.
        target: class position from 0, or the number.
        predicted: probabilities `[rows, classes]`, or numbers `[rows, 1]`.
        threshold: probability from which a binary answer is the positive class.
        costs: of wrong answers; with them, `cost` is what the answer for a row costs on average.
    """
    if problem.task is Task.REGRESSION:
        return {
            "rmse": float(metrics.root_mean_squared_error(target, predicted[:, 0])),
            "mae": float(metrics.mean_absolute_error(target, predicted[:, 0])),
        }
    shares = predicted.astype(np.float64)
    shares = shares / shares.sum(axis=1, keepdims=True)
    labels = np.arange(problem.classes)
    binary = problem.task is Task.BINARY
    guess = answers(predicted, threshold)
    values = {
        "log_loss": metrics.log_loss(target, shares, labels=labels),
        "accuracy": metrics.accuracy_score(target, guess),
        "f1": metrics.f1_score(
            target, guess, average="binary" if binary else "macro", zero_division=0
        ),
    }
    if binary:
        if costs:
            wrong = np.where(target == 1, costs.false_negative, costs.false_positive)
            values["cost"] = float((wrong * (guess != target)).mean())
        values["brier"] = metrics.brier_score_loss(target, shares[:, 1], pos_label=1)
    if len(np.unique(target)) == problem.classes:
        values["roc_auc"] = (
            metrics.roc_auc_score(target, shares[:, 1])
            if binary
            else metrics.roc_auc_score(target, shares, multi_class="ovr", average="weighted")
        )
    return {name: float(value) for name, value in values.items()}


def answers(predicted: npt.NDArray[np.floating[Any]], threshold: float) -> npt.NDArray[np.intp]:
    """Class position that is answered for each row of probabilities, as inference does it."""
    if predicted.shape[1] == 2:
        # In float64, like the threshold; argmax would call a tie false.
        return (predicted[:, 1].astype(np.float64) >= threshold).astype(np.intp)
    return np.asarray(predicted.argmax(axis=1))


def worst(metric: str) -> float:
    """What stands for a metric that is not defined: no better than any other value."""
    return float("inf") if metric in LOWER_IS_BETTER else 0.0
