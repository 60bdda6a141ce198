"""The metrics that pipelines can name, and the tasks they fit."""

from __future__ import annotations

from typing import Literal

from everloop_contracts.schema import Task

__all__ = ["LOWER_IS_BETTER", "TASK_METRICS", "Metric", "WatchedMetric"]

WatchedMetric = Literal["roc_auc", "accuracy", "f1", "rmse", "mae", "cost"]
"""Metrics that the monitor estimates and realises; `cost` is what an answer costs by `training.costs`."""
Metric = Literal["roc_auc", "accuracy", "f1", "rmse", "mae", "log_loss", "brier"]

TASK_METRICS: dict[Task, tuple[Metric, ...]] = {
    Task.BINARY: ("roc_auc", "accuracy", "f1", "log_loss", "brier"),
    Task.MULTICLASS: ("roc_auc", "accuracy", "f1", "log_loss"),
    Task.REGRESSION: ("rmse", "mae"),
}
"""Metrics of each task; the first is the one meant where a pipeline names none."""

LOWER_IS_BETTER: frozenset[Metric | WatchedMetric] = frozenset(
    {"log_loss", "brier", "rmse", "mae", "cost"}
)
