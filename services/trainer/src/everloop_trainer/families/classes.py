"""Answers of a model that has not met every class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from everloop_trainer.families.family import Floats, Problem

__all__ = ["spread"]


def spread(problem: Problem, taught: npt.NDArray[Any], answered: Floats) -> Floats:
    """Probabilities of the classes in `taught` as those of all classes; numbers as they are.

    A class that is only in newer rows has no chance with a model that never met it.
    """
    if answered.shape[1] == (problem.classes or 1):
        return answered
    whole = np.zeros((len(answered), problem.classes), dtype=np.float32)
    whole[:, np.unique(taught).astype(int)] = answered
    return whole
