"""What the trials of a search learn from and are judged on."""

from __future__ import annotations

from typing import Final

from sklearn.model_selection import TimeSeriesSplit

from everloop_contracts.pipeline import Pipeline
from everloop_features import fit
from everloop_trainer.class_weights import weights_of
from everloop_trainer.families import load_family
from everloop_trainer.judge import Fold
from everloop_trainer.rows import Rows

__all__ = ["folds_of"]

SEARCH_ROWS: Final = 60_000
"""Newest rows that a search looks at; the winner is then fitted on all of them."""
VALIDATION_SHARE: Final = 0.25
"""Newest share of the search's rows that trials are judged on."""


def folds_of(pipeline: Pipeline, rows: Rows) -> tuple[Fold, ...]:
    """What trials of this pipeline are judged on, features fitted on the rows that teach only.

    Args:
        pipeline: names the families, whose encodings it takes.
        rows: the training part; only the newest `SEARCH_ROWS` are looked at.
    """
    recent = rows.part(max(0, len(rows) - SEARCH_ROWS), len(rows))
    count = pipeline.training.search.folds
    if count == 1:
        parts = [recent.split(VALIDATION_SHARE)]
    else:
        # Each fold's model learns from all rows before those that it is judged on.
        splits = TimeSeriesSplit(n_splits=min(count, len(recent) - 1)).split(recent.target)
        parts = [
            (recent.part(0, newer[0]), recent.part(newer[0], newer[-1] + 1)) for _, newer in splits
        ]
    return tuple(_fold(pipeline, *part) for part in parts)


def _fold(pipeline: Pipeline, taught: Rows, judged: Rows) -> Fold:
    features = fit(pipeline, taught.feeds, taught.target)
    encodings = {load_family(name).encoding for name in pipeline.training.families}
    return Fold(
        {
            encoding: (
                features.transform(taught.feeds, encoding),
                features.transform(judged.feeds, encoding),
            )
            for encoding in encodings
        },
        (taught.target, judged.target),
        weights_of(pipeline, taught.target),
    )
