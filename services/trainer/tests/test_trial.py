"""A trial leaves the machine's processors to those who answer callers."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from everloop_contracts.pipeline import Task
from everloop_trainer import judge, trial
from everloop_trainer.families import Problem


def test_a_trial_steps_back_and_stays_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def fit(*_: object) -> None:
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))

    family = SimpleNamespace(encoding="ordinal", fit=fit)
    monkeypatch.setattr(judge, "load_family", lambda name: family)
    rows = np.zeros((2, 1), np.float32), np.zeros((2, 1), np.float32)
    folds = (judge.Fold({"ordinal": rows}, (np.zeros(2), np.zeros(2))),)

    def run() -> None:
        for _ in range(2):  # Ray may give one worker several trials
            trial.run_trial(
                {"family": "any"},
                folds,
                Problem(Task.BINARY, 2),
                "roc_auc",
                seed=1,
            )

    before = os.getpriority(os.PRIO_PROCESS, 0)
    # Niceness is the thread's on Linux: this one's stays as it is.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [max(before, trial.NICENESS)] * 2
