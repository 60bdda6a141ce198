"""Metrics from counts are scikit-learn's, and intervals hold what they say they do."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from everloop_contracts.pipeline import Costs, Task
from everloop_trainer.families import Problem
from everloop_trainer.intervals import gains, intervals, resampled, weighted
from everloop_trainer.measure import measure

PROBLEMS = [Problem(Task.BINARY, 2), Problem(Task.MULTICLASS, 3), Problem(Task.REGRESSION, 0)]


def answered(problem: Problem, rows: int = 300, seed: int = 1) -> tuple[npt.NDArray[Any], Any]:
    random = np.random.default_rng(seed)
    target: npt.NDArray[Any]
    if problem.task is Task.REGRESSION:
        target = random.normal(size=rows)
        return target, (target + random.normal(size=rows)).reshape(-1, 1).astype(np.float32)
    target = random.integers(problem.classes, size=rows)
    weights = random.random((rows, problem.classes)).round(1) + 0.1  # ties
    weights[np.arange(rows), target] += 0.4
    return target, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: str(problem.task))
def test_counts_give_the_metrics_of_the_rows_they_stand_for(problem: Problem) -> None:
    target, predicted = answered(problem)
    costs = Costs(false_negative=3) if problem.task is Task.BINARY else None
    random = np.random.default_rng(4)
    draws = [np.arange(len(target)), *random.integers(len(target), size=(3, len(target)))]
    counts = np.stack([np.bincount(draw, minlength=len(target)) for draw in draws])
    found = weighted(problem, target, predicted, counts.astype(float), 0.6, costs)
    for position, draw in enumerate(draws):
        expected = measure(problem, target[draw], predicted[draw], 0.6, costs)
        assert {name: values[position] for name, values in found.items()} == pytest.approx(
            expected, abs=1e-6
        )


def test_a_metric_that_a_resample_does_not_define_is_left_out_of_it() -> None:
    target, predicted = np.array([0, 1]), np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    problem = PROBLEMS[0]
    counts = np.array([[2.0, 0.0], [1.0, 1.0]])
    assert np.isnan(weighted(problem, target, predicted, counts)["roc_auc"]).tolist() == [
        True,
        False,
    ]
    assert "roc_auc" not in intervals(resampled(problem, np.zeros(2, int), predicted))


def test_a_gain_is_positive_whichever_way_a_metric_counts() -> None:
    mine = {"log_loss": np.array([0.5, 0.7]), "roc_auc": np.array([0.8, 0.8]), "f1": np.ones(2)}
    theirs = {
        "log_loss": np.array([0.6, 0.6]),
        "roc_auc": np.array([0.7, np.nan]),
        "f1": np.zeros(2),
    }
    found = gains(mine, theirs)
    assert found.keys() == {"f1", "log_loss"}
    assert found["f1"] == (1.0, 1.0)
    assert found["log_loss"] == pytest.approx((0.1, -0.1))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    problem = PROBLEMS[2]
    covered = 0
    for seed in range(100):
        target, predicted = answered(problem, 200, seed)
        low, high = intervals(resampled(problem, target, predicted, seed=seed))["mae"]
        covered += low <= np.sqrt(2 / np.pi) <= high
    assert 85 <= covered <= 99
