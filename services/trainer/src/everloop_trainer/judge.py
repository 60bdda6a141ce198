"""How a trial of a search is judged; free of Ray, and of what a worker would import in vain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_features import Encoding
from everloop_trainer.families import Family, Predict, Problem, load_family
from everloop_trainer.families.classes import spread
from everloop_trainer.measure import measure, worst

__all__ = ["BUDGET", "REDUCTION", "Fold", "judge"]

BUDGET: Final = 9
"""Work of a whole trial; ASHA compares trials at 1, 3 and 9."""
REDUCTION: Final = 3


@dataclass(frozen=True, slots=True)
class Fold:
    """Rows that a model learns from, and newer ones that it is judged on.

    Attributes:
        matrices: features of both, by encoding.
        targets: what both are to give.
        weights: of the rows that teach; None where all count alike.
    """

    matrices: Mapping[Encoding, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    targets: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    weights: npt.NDArray[np.float32] | None = None


def judge(
    name: str,
    params: Mapping[str, Any],
    folds: tuple[Fold, ...],
    problem: Problem,
    metric: str,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> None:
    """Fits a family's model and reports its metrics at growing shares of the work.

    With one fold the work is the fit itself. With several it is the folds, the oldest first, and what is reported is
    the mean over those that are done: a trial that is stopped has not been fitted to the others.

    Args:
        name: of the family.
        params: of the family.
        folds: what it learns from and is judged on.
        problem: what is to be learned.
        metric: the one that the search looks at; always among those reported.
        seed: makes the outcome repeatable.
        report: told the metrics so far and, as `budget`, the work that is done; may raise to end it.
    """
    family = load_family(name)
    if len(folds) > 1:
        _judge_folds(family, params, folds, problem, metric, seed, report)
        return
    [fold] = folds
    taught, judged = fold.matrices[family.encoding]
    reported = 0

    def stage(share: float, predict: Predict) -> None:
        nonlocal reported
        budget = round(share * BUDGET)
        # Only where ASHA compares, and at the end: judging costs time.
        if budget > reported and budget in (1, REDUCTION, BUDGET):
            reported = budget
            answered = spread(problem, fold.targets[0], predict(judged))
            values = measure(problem, fold.targets[1], answered)
            report({metric: worst(metric), **values, "budget": budget})

    # A copy: arrays from the object store are read-only, and PyTorch warns about those.
    weights = None if fold.weights is None else np.array(fold.weights)
    family.fit(problem, np.array(taught), fold.targets[0], params, seed, stage, weights)


def _judge_folds(
    family: Family,
    params: Mapping[str, Any],
    folds: tuple[Fold, ...],
    problem: Problem,
    metric: str,
    seed: int,
    report: Callable[[dict[str, float]], None],
) -> None:
    parts: list[dict[str, float]] = []
    for number, fold in enumerate(folds, start=1):
        taught, judged = fold.matrices[family.encoding]
        weights = None if fold.weights is None else np.array(fold.weights)
        model = family.fit(
            problem, np.array(taught), fold.targets[0], params, seed, weights=weights
        )
        answered = spread(problem, fold.targets[0], family.predict(problem, model, judged))
        parts.append(measure(problem, fold.targets[1], answered))
        common = set.intersection(*(set(part) for part in parts))
        means = {name: float(np.mean([part[name] for part in parts])) for name in sorted(common)}
        budget = math.ceil(BUDGET * number / len(folds))
        report({metric: worst(metric), **means, "budget": budget})
