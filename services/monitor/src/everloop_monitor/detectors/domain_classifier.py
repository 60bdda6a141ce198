"""How well a classifier tells a chunk from the reference sample, as NannyML's DomainClassifierCalculator does."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]

_ROWS = 5_000
"""Rows of each side that the classifier sees at most."""
_FOLDS = 3
_SEED = 1
_TREES = 50
_PARAMETERS = {"objective": "binary", "num_threads": 1, "verbosity": -1, "seed": _SEED}


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    import lightgbm
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold

    names = [*sample.numbers, *sample.texts]
    if not names or len(sample) < 2 * _FOLDS:
        return None
    texts = list(range(len(sample.numbers), len(names)))
    rng = np.random.default_rng(_SEED)

    def matrix(rows: Sample) -> NDArray[np.float64]:
        columns = [rows.numbers[name] for name in sample.numbers]
        # LightGBM takes a category below 0 for missing.
        columns += [(rows.texts[name] + 1).astype(np.float64) for name in sample.texts]
        found = np.column_stack(columns)
        return found[rng.permutation(len(found))[:_ROWS]]

    def read(chunk: Sample) -> Iterable[Reading]:
        # A part of the sample is told from the rest of it.
        rest = sample
        if chunk.rows is not None and sample.rows is not None:
            rest = sample.take(~np.isin(sample.rows, chunk.rows))
        here, there = matrix(chunk), matrix(rest)
        x = np.concatenate([there, here])
        y = np.concatenate([np.zeros(len(there)), np.ones(len(here))])
        folds = StratifiedKFold(n_splits=_FOLDS, shuffle=True, random_state=_SEED)
        guessed = np.empty(len(y))
        for known, asked in folds.split(x, y):
            data = lightgbm.Dataset(x[known], y[known], categorical_feature=texts or "auto")
            guessed[asked] = lightgbm.train(_PARAMETERS, data, _TREES).predict(x[asked])
        yield Reading("multivariate_drift", "domain_classifier", float(roc_auc_score(y, guessed)))

    return read


DETECTOR = Detector(_fit, ("multivariate_drift",), cheap=False)
