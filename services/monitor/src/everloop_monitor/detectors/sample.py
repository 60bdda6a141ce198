"""Rows as detectors take them: columns of numbers."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from everloop_contracts.pipeline import FieldType, Pipeline, Task
from everloop_monitor.domain import Rows

__all__ = ["NULL", "UNSEEN", "Sample", "chunk_of", "reference_of"]

NULL, UNSEEN = 0, -1
"""Codes of a text that is missing, and of one that the reference sample never had."""
_SCORE, _LABEL = "everloop_score", "everloop_label"
_NUMBERS, _TEXTS = (FieldType.INT, FieldType.FLOAT), (FieldType.STRING, FieldType.BOOL)
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sample:
    """Rows of a reference sample or a chunk; every array holds one value per row.

    Attributes:
        numbers: int and float inputs; NaN where missing.
        texts: text and boolean inputs, as positions in `categories`.
        scores: probability of the positive class, or the predicted number; NaN where the model gave no number.
        labels: predicted classes as positions in `classes`; of binary targets 1.0 for `true`, 0.0 for others.
        targets: the label, as a number; NaN where not known.
        categories: the texts of the reference sample, by field; the first is the missing one.
        classes: the predicted classes of the reference sample.
        rows: position of each row in the reference sample; None of a chunk.
    """

    numbers: Mapping[str, NDArray[np.float64]]
    texts: Mapping[str, NDArray[np.int64]]
    scores: NDArray[np.float64]
    labels: NDArray[np.float64]
    targets: NDArray[np.float64]
    categories: Mapping[str, pd.Index[Any]]
    classes: pd.Index[Any]
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, which: slice | NDArray[Any]) -> Sample:
        """Some of the rows: a slice, a mask or positions."""
        return Sample(
            {name: column[which] for name, column in self.numbers.items()},
            {name: column[which] for name, column in self.texts.items()},
            self.scores[which],
            self.labels[which],
            self.targets[which],
            self.categories,
            self.classes,
            None if self.rows is None else self.rows[which],
        )


def reference_of(pipeline: Pipeline, parquet: bytes) -> Sample:
    """The reference sample of a model version, without columns that the log keeps out or the version never had."""
    frame = pd.read_parquet(io.BytesIO(parquet))
    logged = {
        name: spec.type
        for name, spec in pipeline.inputs.items()
        if name in frame and name not in pipeline.serving.log.redact
    }
    texts = {name: _text(frame[name]) for name, kind in logged.items() if kind in _TEXTS}
    categories = {
        name: pd.Index(["", *sorted(set(values) - {""})], dtype=object)
        for name, values in texts.items()
    }
    task = pipeline.target.task
    scores = _floats(frame[_SCORE])
    labels = frame[_LABEL].astype(object).fillna("").to_numpy(dtype=object)
    classes = pd.Index(sorted(set(labels)), dtype=object)
    target = frame[pipeline.target.field]
    targets: NDArray[np.float64]
    if task is Task.REGRESSION:
        targets = _floats(target)
    elif task is Task.BINARY:
        targets = np.asarray(target.map({True: 1.0, False: 0.0}), dtype=np.float64)
    else:
        targets = np.full(len(frame), np.nan)
    return Sample(
        {name: _floats(frame[name]) for name, kind in logged.items() if kind in _NUMBERS},
        {name: _codes(categories[name], values) for name, values in texts.items()},
        np.zeros(len(frame)) if task is Task.MULTICLASS else scores,
        _labels(task, classes, labels),
        targets,
        categories,
        classes,
        np.arange(len(frame)),
    )


def chunk_of(
    pipeline: Pipeline, reference: Sample, rows: Rows, actuals: Sequence[str | None] | None = None
) -> Sample:
    """A chunk, with the columns that the reference sample has."""
    task = pipeline.target.task
    targets = (
        np.full(len(rows), np.nan)
        if actuals is None
        else np.array([_target(label, task) for label in actuals], dtype=np.float64)
    )
    return Sample(
        {name: rows.numbers[name] for name in reference.numbers},
        {
            name: _codes(categories, rows.texts[name])
            for name, categories in reference.categories.items()
        },
        np.where(np.isfinite(rows.scores), rows.scores, np.nan),
        _labels(task, reference.classes, rows.labels),
        targets,
        reference.categories,
        reference.classes,
    )


def _codes(categories: pd.Index[Any], values: NDArray[np.object_]) -> NDArray[np.int64]:
    return categories.get_indexer(pd.Index(values, dtype=object)).astype(np.int64)


def _labels(task: Task, classes: pd.Index[Any], labels: NDArray[np.object_]) -> NDArray[np.float64]:
    if task is Task.BINARY:
        return np.asarray(labels == "true", dtype=np.float64)
    return _codes(classes, labels).astype(np.float64)


def _text(column: pd.Series[Any]) -> NDArray[np.object_]:
    """Texts without nulls; booleans as `true` and `false`."""
    if column.dtype == bool or set(column.dropna().unique()) <= {True, False}:
        column = column.map({True: "true", False: "false"})
    return column.astype(object).fillna("").to_numpy(dtype=object)


def _floats(values: pd.Series[Any]) -> NDArray[np.float64]:
    """Numbers; NaN where null and beyond 32 bits, which the model takes for missing and no square of exists."""
    numbers = pd.to_numeric(values).astype("float64").to_numpy()
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _target(label: str | None, task: Task) -> float:
    """The label as a number; NaN where there is none, or one that the task does not know."""
    if label is None or task is not Task.REGRESSION:
        return {"true": 1.0, "false": 0.0}.get(label or "", math.nan)
    try:
        value = float(label)
    except ValueError:
        return math.nan
    return value if abs(value) <= _LARGEST else math.nan
