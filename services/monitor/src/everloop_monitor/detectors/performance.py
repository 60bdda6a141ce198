"""What NannyML's calculators of performance have in common: which metrics, and the columns that they take."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from everloop_contracts.pipeline import Pipeline, Task
from everloop_monitor.detectors.sample import Sample

__all__ = ["SCORE", "TARGET", "calculator", "labelled", "measured", "options", "outputs"]

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
        # NannyML counts what answers earn. Its normalization is by what was answered: `measured` divides by the rows.
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


def measured(
    pipeline: Pipeline, ask: Callable[[pd.DataFrame], Any], rows: pd.DataFrame
) -> float | None:
    """What a metric of NannyML says of rows; None where it is not defined.

    The metric itself is asked, not its calculator, which would put each number into a frame of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a single class, which is no number then
        value = ask(rows)
    if value is None or not math.isfinite(value):
        return None
    return (
        -float(value) / len(rows)
        if pipeline.monitoring.performance.metric == "cost"
        else float(value)
    )
