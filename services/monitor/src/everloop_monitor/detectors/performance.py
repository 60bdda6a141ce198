"""What NannyML's calculators of performance have in common: which metrics, and the columns that they take."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pandas as pd

from everloop_contracts.pipeline import Pipeline, Task
from everloop_monitor.detectors.sample import Sample

__all__ = ["TARGET", "calculator", "labelled", "options", "outputs", "value_of"]

log = logging.getLogger(__name__)

SCORE, LABEL, TARGET = "score", "label", "target"
_METRICS = {Task.BINARY: ("roc_auc", "accuracy", "f1", "cost"), Task.REGRESSION: ("rmse", "mae")}
_PROBLEMS = {Task.BINARY: "classification_binary", Task.REGRESSION: "regression"}


def outputs(rows: Sample) -> pd.DataFrame:
    """Scores, labels and targets by row number, without the rows for which the model gave no number."""
    frame = pd.DataFrame({SCORE: rows.scores, LABEL: rows.labels, TARGET: rows.targets})
    return frame[np.isfinite(rows.scores)]


def labelled(pipeline: Pipeline, sample: Sample) -> pd.DataFrame | None:
    """What a reference sample teaches about performance; None, and a line in the log, where that is nothing."""
    task, metric = pipeline.target.task, pipeline.monitoring.performance.metric
    known = outputs(sample)
    known = known[known[TARGET].notna()]
    classes = known[TARGET].nunique()
    if metric not in _METRICS.get(task, ()):
        why = f"{metric} is not measured for {task} targets"
    elif classes < 2:
        why = f"the labels of the reference sample hold {classes} different values"
    else:
        return known
    log.warning("pipeline %s: performance is not watched: %s", pipeline.name, why)
    return None


def options(pipeline: Pipeline) -> dict[str, Any]:
    """Arguments that every calculator takes."""
    import nannyml

    task, metric, costs = (
        pipeline.target.task,
        pipeline.monitoring.performance.metric,
        pipeline.training.costs,
    )
    found: dict[str, Any] = {
        "metrics": [metric],
        "y_true": TARGET,
        "chunker": nannyml.CountBasedChunker(chunk_number=1),
    }
    if task is Task.REGRESSION:
        return found | {"y_pred": SCORE}
    found |= {"y_pred_proba": SCORE, "y_pred": LABEL, "problem_type": _PROBLEMS[task]}
    if metric == "cost" and costs:
        # NannyML counts what answers earn. Its normalization is by what was answered: `value_of` divides by the rows.
        matrix = np.array([[0.0, -costs.false_positive], [-costs.false_negative, 0.0]])
        found |= {
            "metrics": ["business_value"],
            "business_value_matrix": matrix,
            "normalize_business_value": None,
        }
    return found


def calculator(pipeline: Pipeline, known: pd.DataFrame) -> Any:
    """A calculator of realised performance, fitted."""
    import nannyml

    found = {"problem_type": _PROBLEMS[pipeline.target.task], **options(pipeline)}
    return nannyml.PerformanceCalculator(**found).fit(known)


def value_of(pipeline: Pipeline, result: Any, period: str, rows: int) -> float | None:
    """The metric in a result with a single chunk of so many rows; None where it is not defined."""
    metric = pipeline.monitoring.performance.metric
    column, scale = ("business_value", -1.0 / rows) if metric == "cost" else (metric, 1.0)
    value = result.filter(period=period).data[column, "value"].iloc[0]
    return None if value is None or not math.isfinite(value) else scale * float(value)
