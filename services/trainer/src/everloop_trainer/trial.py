"""One trial of a search, as it runs in a Ray worker: this file imports only what a worker needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from ray import tune

from everloop_trainer.families import Predict, Problem, load_family
from everloop_trainer.measure import measure, worst

__all__ = ["BUDGET", "REDUCTION", "run_trial", "split_config"]

BUDGET: Final = 9
"""Work of a whole trial; ASHA compares trials at 1, 3 and 9."""
REDUCTION: Final = 3
NICENESS: Final = 10
"""A trial can wait; replicas on the same machine, which answer callers, cannot."""


def run_trial(
    config: dict[str, Any],
    matrices: Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]],
    targets: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    problem: Problem,
    metric: str,
    seed: int,
) -> None:
    """Fits one model and reports the validation metrics at growing shares of the work."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    name, params = split_config(config)
    family = load_family(name)
    taught, judged = matrices[family.encoding]
    reported = 0

    def report(share: float, predict: Predict) -> None:
        nonlocal reported
        budget = round(share * BUDGET)
        # Only where ASHA compares, and at the end: judging costs time.
        if budget > reported and budget in (1, REDUCTION, BUDGET):
            reported = budget
            values = measure(problem, targets[1], predict(judged))
            tune.report({metric: worst(metric), **values, "budget": budget})

    # A copy: arrays from the object store are read-only, and PyTorch warns about those.
    family.fit(problem, np.array(taught), targets[0], params, seed, report)


def split_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and its own parameters of a trial."""
    name = str(config["family"])
    prefix = f"{name}."
    return name, {
        key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)
    }
