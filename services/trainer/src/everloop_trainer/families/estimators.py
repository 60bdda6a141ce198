"""What the families that fit a scikit-learn estimator have in common."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import Task
from everloop_trainer.families.family import Floats, Problem, Report

__all__ = ["fit_in_stages", "predict_by"]

STAGES: Final = (1 / 9, 1 / 3, 1.0)
"""Shares of the trees after which a running trial is judged."""


def fit_in_stages(
    problem: Problem,
    model: Any,
    trees: str,
    total: int,
    features: Floats,
    target: npt.NDArray[Any],
    report: Report | None,
    weights: Floats | None,
) -> Any:
    """Fits an ensemble; stops to report where somebody asks, and goes in one go otherwise.

    Args:
        problem: what is to be learned.
        model: the estimator, with `warm_start` where there is a report.
        trees: its parameter that holds the number of trees.
        total: that number.
        features: `[rows, columns]`.
        target: `[rows]`.
        report: told about every stage.
        weights: `[rows]`, or None where all rows count alike.
    """
    for share in STAGES if report else STAGES[-1:]:
        model.set_params(**{trees: max(1, round(total * share))})
        model.fit(features, target, sample_weight=weights)
        if report:
            report(share, lambda rows: predict_by(problem, model, rows))
    return model


def predict_by(problem: Problem, model: Any, features: Floats) -> Floats:
    """Probabilities of the fitted classes `[rows, classes]`, or numbers `[rows, 1]`."""
    if problem.task is Task.REGRESSION:
        return np.asarray(model.predict(features), dtype=np.float32).reshape(-1, 1)
    return np.asarray(model.predict_proba(features), dtype=np.float32)
