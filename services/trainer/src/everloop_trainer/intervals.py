"""How sure the metrics of a holdout are: percentile bootstrap over its rows (Efron & Tibshirani 1993, chapter 13).

A resample is how often each row was drawn. Every metric is computed from such counts, for many resamples at once, which
takes a hundredth of the time of calling scikit-learn on each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from everloop_contracts.metrics import LOWER_IS_BETTER
from everloop_contracts.pipeline import Costs, Task
from everloop_trainer.families import Problem
from everloop_trainer.measure import answers

__all__ = ["CONFIDENCE", "gains", "intervals", "resampled", "weighted"]

RESAMPLES: Final = 200
CONFIDENCE: Final = 0.95
AT_ONCE: Final = 2_000_000
"""Counts that are held at a time."""

_LESS: Final = frozenset({*LOWER_IS_BETTER, "cost"})
Floats = npt.NDArray[np.float64]


def intervals(values: Mapping[str, Floats]) -> dict[str, tuple[float, float]]:
    """Lower and upper end of each metric at 95 % confidence, of its values on resamples as `resampled` gives them."""
    tail = (1 - CONFIDENCE) / 2
    ends = {
        name: np.nanquantile(found, [tail, 1 - tail])
        for name, found in values.items()
        if not np.isnan(found).all()
    }
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def gains(mine: Mapping[str, Floats], theirs: Mapping[str, Floats]) -> dict[str, tuple[float, ...]]:
    """How much better one model is than another on each of the same resamples, whichever way a metric counts.

    Args:
        mine: metrics of the one, as `resampled` gives them.
        theirs: metrics of the other, of the same rows and seed.

    Returns:
        Metrics that are defined on every resample for both.
    """
    found: dict[str, tuple[float, ...]] = {}
    for name in sorted(mine.keys() & theirs.keys()):
        gained = theirs[name] - mine[name] if name in _LESS else mine[name] - theirs[name]
        if np.isfinite(gained).all():
            found[name] = tuple(gained.tolist())
    return found


def resampled(
    problem: Problem,
    target: npt.NDArray[Any],
    predicted: npt.NDArray[np.floating[Any]],
    threshold: float = 0.5,
    costs: Costs | None = None,
    seed: int = 0,
) -> dict[str, Floats]:
    """Each metric that `measure` gives, on `RESAMPLES` resamples of the rows; NaN where it is not defined on one.

    Args:
        problem: what was learned.
        target: class position from 0, or the number.
        predicted: probabilities `[rows, classes]`, or numbers `[rows, 1]`.
        threshold: probability from which a binary answer is the positive class.
        costs: of wrong answers.
        seed: makes the resamples repeatable: for as many rows they are the same.
    """
    random, rows = np.random.default_rng(seed), len(target)
    step = max(1, AT_ONCE // rows)
    found: dict[str, list[Floats]] = {}
    for begin in range(0, RESAMPLES, step):
        count = min(step, RESAMPLES - begin)
        drawn = [
            np.bincount(random.integers(rows, size=rows), minlength=rows) for _ in range(count)
        ]
        values = weighted(
            problem, target, predicted, np.stack(drawn).astype(np.float64), threshold, costs
        )
        for name, value in values.items():
            found.setdefault(name, []).append(value)
    return {name: np.concatenate(parts) for name, parts in found.items()}


def weighted(
    problem: Problem,
    target: npt.NDArray[Any],
    predicted: npt.NDArray[np.floating[Any]],
    counts: Floats,
    threshold: float = 0.5,
    costs: Costs | None = None,
) -> dict[str, Floats]:
    """Each metric `[resamples]` for counts `[resamples, rows]`; NaN where it is not defined for a resample."""
    total = counts.sum(axis=1)
    if problem.task is Task.REGRESSION:
        error = predicted[:, 0].astype(np.float64) - target
        return {
            "rmse": np.sqrt(counts @ error**2 / total),
            "mae": counts @ np.abs(error) / total,
        }
    shares = predicted.astype(np.float64)
    shares = shares / shares.sum(axis=1, keepdims=True)
    tiny = np.finfo(np.float64).eps
    told = np.clip(shares[np.arange(len(target)), target], tiny, 1 - tiny)
    guess = answers(predicted, threshold)
    values = {
        "log_loss": counts @ -np.log(told) / total,
        "accuracy": counts @ (guess == target).astype(np.float64) / total,
        "f1": _f1(problem, target, guess, counts),
        "roc_auc": _roc_auc(problem, target, shares, counts),
    }
    if problem.task is Task.BINARY:
        values["brier"] = counts @ (shares[:, 1] - target) ** 2 / total
        if costs:
            wrong = np.where(target == 1, costs.false_negative, costs.false_positive)
            values["cost"] = counts @ (wrong * (guess != target)) / total
    return values


def _f1(
    problem: Problem, target: npt.NDArray[Any], guess: npt.NDArray[Any], counts: Floats
) -> Floats:
    def of(label: int) -> Floats:
        right = counts @ ((guess == label) & (target == label)).astype(np.float64)
        named = counts @ ((guess == label).astype(np.float64) + (target == label))
        return np.asarray(np.divide(2 * right, named, out=np.zeros_like(right), where=named > 0))

    if problem.task is Task.BINARY:
        return of(1)
    present = [
        label for label in range(problem.classes) if np.any([guess == label, target == label])
    ]
    return np.asarray(np.mean([of(label) for label in present], axis=0))


def _roc_auc(problem: Problem, target: npt.NDArray[Any], shares: Floats, counts: Floats) -> Floats:
    """One class against the rest, averaged by how often each is there; NaN where a class is not."""
    if problem.task is Task.BINARY:
        return _auc(target == 1, shares[:, 1], counts)
    parts, weights = [], []
    for label in range(problem.classes):
        positive = target == label
        parts.append(_auc(positive, shares[:, label], counts))
        weights.append(counts @ positive.astype(np.float64))
    total = np.stack(weights)
    return np.asarray((np.stack(parts) * total).sum(axis=0) / total.sum(axis=0))


def _auc(positive: npt.NDArray[np.bool_], scores: Floats, counts: Floats) -> Floats:
    """The share of pairs that are in order, a tie being half of one."""
    groups = rankdata(scores, method="dense").astype(np.intp) - 1
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    drawn = counts[:, order]
    ups = np.add.reduceat(drawn * positive[order], starts, axis=1)
    downs = np.add.reduceat(drawn * ~positive[order], starts, axis=1)
    below = np.cumsum(downs, axis=1) - downs / 2
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    areas = np.full(len(counts), np.nan)
    return np.asarray(np.divide((ups * below).sum(axis=1), pairs, out=areas, where=pairs > 0))
