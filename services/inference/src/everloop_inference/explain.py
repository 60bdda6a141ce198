"""How much each field of a row contributes to what a model says about it: Shapley values of the raw inputs.

The game of a row x gives a set of fields the mean output over rows that have the fields' values from x and the others
from a background row; the background are the golden rows of the version. Its Shapley values are estimated by
permutation sampling (Castro et al. 2009, Štrumbelj and Kononenko 2014) in antithetic pairs (Mitchell et al. 2022):
for every background row one random order, in which the fields change over to x one by one, and the same order
backwards. The changes along one order add up to the output of x less that of the background row, so that attributions
add up whatever the budget is: `2 · background rows · (fields - 1) + 1` outputs for a row.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import Task
from everloop_features.inputs import Block
from everloop_inference.domain import Call, ServedModel
from everloop_inference.metrics import DROPPED, EXPLAINED
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Explainer", "Explanation"]

SEED: Final = 7

Orders = npt.NDArray[np.intp]
Taken = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Explanation:
    """Contributions to one output of a model for one row.

    Attributes:
        label: class whose probability it is; empty for regression.
        base_score: mean output for the background.
        score: output for the row; `base_score` and the attributions add up to it.
        attributions: one per input of the model.
        errors: standard errors of the attributions, rather too large than too small: they hold how the background
            rows differ, too.
    """

    label: str
    base_score: float
    score: float
    attributions: list[float]
    errors: list[float]


class Explainer:
    """Explains rows in a thread, one request's row at a time, while others go on predicting."""

    def __init__(self, slow: Executor | None, most_waiting: int) -> None:
        """Takes where it runs, and how many requests may be with it at once."""
        self._slow = slow
        self._most_waiting = most_waiting
        self._waiting = 0

    async def explain(
        self, model: ServedModel, block: Block, label: str, call: Call
    ) -> list[Explanation]:
        """Explains converted rows.

        Args:
            model: the version.
            block: the rows.
            label: class whose probability is explained; empty for the usual one.
            call: what else is known about the request.

        Raises:
            EverloopError: kind invalid: no such class; kind exhausted: too many requests are here already; kind
                deadline: it would take longer than its caller waits.
        """
        _check_label(model, label)
        if self._waiting >= self._most_waiting:
            DROPPED.labels(model.name, "overloaded").inc()
            raise EverloopError(
                Kind.EXHAUSTED,
                "OVERLOADED",
                f"{self._waiting} requests wait for explanations already",
                model=model.name,
            ).after(max(0.01, self._waiting * _seconds(model)))
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            explanations = []
            for row in range(block.rows):
                if time.perf_counter() > call.deadline:
                    DROPPED.labels(model.name, "deadline").inc()
                    message = f"the deadline passed when {row} of {block.rows} rows were explained"
                    raise EverloopError(
                        Kind.DEADLINE, "DEADLINE_EXCEEDED", message, model=model.name
                    )
                one = block.take(np.array([row]))
                explanations.append(
                    await loop.run_in_executor(self._slow, _explained, model, one, label)
                )
            EXPLAINED.labels(model.name).inc(block.rows)
            return explanations
        finally:
            self._waiting -= 1


def _seconds(model: ServedModel) -> float:
    return model.cost.seconds(2 * model.background.rows * len(model.inputs))


def _check_label(model: ServedModel, label: str) -> None:
    if label and label not in model.classes:
        known = ", ".join(model.classes) or "none, it predicts a number"
        message = f"the model has no class {label!r:.80}; its classes: {known}"
        raise EverloopError(Kind.INVALID, "UNKNOWN_LABEL", message, model=model.name, field="label")


def _explained(model: ServedModel, row: Block, label: str) -> Explanation:
    """Explains a block of one row."""
    fields, background = len(model.inputs), model.background
    orders, taken = _walks(fields, background.rows)
    which = np.tile(np.arange(background.rows), 2)
    output = _outputs(model, row)
    column = _column(model, label, output[0])
    values = np.empty((len(orders), fields + 1))
    values[:, 0] = model.background_output[which, column]
    values[:, -1] = output[0, column]
    if fields > 1:
        steps = background.take(np.repeat(which, fields - 1))
        mixed = model.layout.mixed(row, steps, taken)
        values[:, 1:-1] = _outputs(model, mixed)[:, column].reshape(len(orders), fields - 1)
    changes = np.empty((len(orders), fields))
    np.put_along_axis(changes, orders, np.diff(values, axis=1), axis=1)
    pairs = (changes[: background.rows] + changes[background.rows :]) / 2
    spread = pairs.std(axis=0, ddof=1) if len(pairs) > 1 else np.zeros(fields)
    return Explanation(
        label=model.classes[column] if model.classes else "",
        base_score=float(values[:, 0].mean()),
        score=float(values[0, -1]),
        attributions=pairs.mean(axis=0).tolist(),
        errors=(spread / math.sqrt(len(pairs))).tolist(),
    )


def _outputs(model: ServedModel, block: Block) -> npt.NDArray[np.float64]:
    return np.asarray(model.run(model.layout.feeds(block)), dtype=np.float64)


def _column(model: ServedModel, label: str, output: Sequence[Any] | npt.NDArray[Any]) -> int:
    if label:
        return model.classes.index(label)
    if model.task is Task.MULTICLASS:
        return int(np.argmax(output))
    return 1 if model.task is Task.BINARY else 0


@lru_cache(maxsize=64)
def _walks(fields: int, rows: int) -> tuple[Orders, Taken]:
    """Orders `[2 · rows, fields]`, and which fields are taken from the row at each step between the two ends.

    The second half of the orders is the first one backwards. Steps are `[2 · rows · (fields - 1), fields]`.
    """
    chance = np.random.default_rng(SEED)
    forwards = np.stack([chance.permutation(fields) for _ in range(rows)])
    orders = np.concatenate([forwards, forwards[:, ::-1]])
    ranks = orders.argsort(axis=1)
    taken = ranks[:, None, :] < np.arange(1, fields)[None, :, None]
    return orders, taken.reshape(-1, fields)
