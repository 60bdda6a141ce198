"""Parts of a holdout that share the value of a field, and how a model does on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop_trainer.domain import Slice

__all__ = ["FEWEST", "slices_of"]

FEWEST: Final = 30
"""Rows below which a part says nothing."""
MOST: Final = 50
"""Most frequent values of a field that are told apart."""

Measure = Callable[[npt.NDArray[np.intp]], dict[str, float]]


def slices_of(
    table: pa.Table, fields: Sequence[str], candidate: Measure, baseline: Measure | None
) -> tuple[Slice, ...]:
    """The metrics of every part that has rows enough, in the order of the fields and then of their size.

    Args:
        table: the holdout.
        fields: text or boolean columns.
        candidate: measures the model on the rows with these positions.
        baseline: measures the model in Production on them, if there is one.
    """
    found = []
    for field in fields:
        values = pc.fill_null(table[field].cast(pa.string()), "")
        counts = sorted(
            ((item["counts"], item["values"]) for item in values.value_counts().to_pylist()),
            key=lambda item: (-item[0], item[1]),
        )
        texts: npt.NDArray[Any] = np.asarray(values.to_numpy(zero_copy_only=False), dtype=object)
        for count, value in counts[:MOST]:
            if count < FEWEST:
                break
            rows = np.flatnonzero(texts == value)
            known = baseline(rows) if baseline else {}
            found.append(Slice(field, value, count, candidate(rows), known))
    return tuple(found)
