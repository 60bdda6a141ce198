"""From a dataset version to rows that can teach: labelled, inside the window, oldest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import Pipeline, Task
from everloop_features import Feeds, feeds_from_table, inputs_of
from everloop_trainer.domain import TrainingError
from everloop_trainer.families import Problem

__all__ = ["Rows", "prepare"]

FEWEST: int = 50
"""Labelled rows below which nothing can be judged."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled rows, oldest first, and what they are to teach.

    Attributes:
        table: all columns of the schema.
        feeds: the model's raw inputs.
        target: class position from 0, or the number.
        classes: class labels as text, in the order of the positions; empty for regression.
        problem: what is to be learned.
    """

    table: pa.Table
    feeds: Feeds
    target: npt.NDArray[Any]
    classes: tuple[str, ...]
    problem: Problem

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.target)

    def part(self, begin: int, end: int) -> Rows:
        """The rows from `begin` (included) to `end` (not included)."""
        return Rows(
            self.table.slice(begin, end - begin),
            {name: feed[begin:end] for name, feed in self.feeds.items()},
            self.target[begin:end],
            self.classes,
            self.problem,
        )

    def split(self, newest: float) -> tuple[Rows, Rows]:
        """Older and newer rows, `newest` being the share of the latter; both hold at least one row."""
        cut = min(max(round(len(self) * (1 - newest)), 1), len(self) - 1)
        return self.part(0, cut), self.part(cut, len(self))


def prepare(pipeline: Pipeline, table: pa.Table) -> Rows:
    """Takes the labelled rows of the pipeline's window.

    Raises:
        TrainingError: too few rows, or only one class.
    """
    time = pipeline.schema_.time
    table = table.filter(pc.is_valid(table[pipeline.target.field]))
    if pipeline.training.window != "all" and len(table):
        oldest = pc.max(table[time]).as_py() - pipeline.training.window
        table = table.filter(pc.greater_equal(table[time], pa.scalar(oldest, table[time].type)))
    table = table.sort_by([(time, "ascending"), (pipeline.schema_.id, "ascending")])
    if len(table) < FEWEST:
        raise TrainingError(f"{len(table)} labelled rows are too few, {FEWEST} is the least")
    target, classes = _target(pipeline, table[pipeline.target.field])
    problem = Problem(pipeline.target.task, len(classes))
    if classes and len(np.unique(target)) < 2:
        raise TrainingError(f"every labelled row has the same '{pipeline.target.field}'")
    feeds = feeds_from_table(table, inputs_of(pipeline))
    return Rows(table.combine_chunks(), feeds, target, classes, problem)


def _target(
    pipeline: Pipeline, column: pa.ChunkedArray
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    if pipeline.target.task is Task.BINARY:
        return column.cast(pa.int8()).to_numpy().astype(np.int64), ("false", "true")
    if pipeline.target.task is Task.REGRESSION:
        return column.cast(pa.float64()).to_numpy(), ()
    labels, positions = np.unique(column.to_numpy().astype(str), return_inverse=True)
    return positions, tuple(str(label) for label in labels)
