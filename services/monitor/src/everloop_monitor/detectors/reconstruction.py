"""How badly the features' own correlations, as the reference sample has them, explain a chunk (PCA)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]

_EXPLAINED = 0.65
"""Share of the variance that the components keep, as in NannyML's DataReconstructionDriftCalculator."""


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    """NannyML's measure: means for missing numbers, frequencies for texts, scaled, projected and back again."""
    from sklearn.decomposition import PCA
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = [name for name, column in sample.numbers.items() if np.isfinite(column).any()]
    if len(numbers) + len(sample.texts) < 2:
        return None
    # One more than there are texts: a code of -1 finds the last, of which the sample has none.
    frequencies = {
        name: np.bincount(column, minlength=len(sample.categories[name]) + 1) / len(sample)
        for name, column in sample.texts.items()
    }

    def matrix(rows: Sample) -> NDArray[np.float64]:
        columns = [rows.numbers[name] for name in numbers]
        columns += [frequencies[name][column] for name, column in rows.texts.items()]
        return np.column_stack(columns)

    def taught(rows: Sample) -> tuple[Any, Any]:
        to_scale = make_pipeline(SimpleImputer(), StandardScaler())
        return to_scale, PCA(n_components=_EXPLAINED, random_state=16).fit(
            to_scale.fit_transform(matrix(rows))
        )

    of_sample = taught(sample)
    components = of_sample[1]
    if components.n_components_ == components.n_features_in_:
        return None  # nothing is left out that could be missed

    def read(chunk: Sample) -> Iterable[Reading]:
        to_scale, components = of_sample
        if chunk.rows is not None and sample.rows is not None:
            # Components explain rows that they were taught with better than any that come later.
            to_scale, components = taught(sample.take(~np.isin(sample.rows, chunk.rows)))
        scaled = to_scale.transform(matrix(chunk))
        back = components.inverse_transform(components.transform(scaled))
        error = float(np.linalg.norm(scaled - back, axis=1).mean())
        yield Reading("multivariate_drift", "reconstruction_error", error)

    return read


DETECTOR = Detector(_fit, ("multivariate_drift",))
