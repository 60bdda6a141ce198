"""One trial of a search, as it runs in a Ray worker: this file imports only what a worker needs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, Final

from ray import tune

from everloop_trainer.families import Problem
from everloop_trainer.judge import Fold, judge

__all__ = ["CPU_SECONDS", "run_trial", "split_config"]

CPU_SECONDS: Final = "cpu_seconds"
"""Processor time of a trial so far, among what it reports."""
NICENESS: Final = 10
"""A trial can wait; replicas on the same machine, which answer callers, cannot."""


def run_trial(
    config: dict[str, Any],
    folds: tuple[Fold, ...],
    problem: Problem,
    metric: str,
    seed: int,
) -> None:
    """Fits one model and reports the validation metrics at growing shares of the work."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    name, params = split_config(config)
    began = time.process_time()

    def report(values: dict[str, float]) -> None:
        tune.report({**values, CPU_SECONDS: time.process_time() - began})

    judge(name, params, folds, problem, metric, seed, report)


def split_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Family and its own parameters of a trial."""
    name = str(config["family"])
    prefix = f"{name}."
    return name, {
        key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)
    }
