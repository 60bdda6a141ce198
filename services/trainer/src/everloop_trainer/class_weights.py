"""How much rows count while a model is fitted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.class_weight import compute_sample_weight

from everloop_contracts.pipeline import Pipeline

__all__ = ["weights_of"]


def weights_of(pipeline: Pipeline, target: npt.NDArray[Any]) -> npt.NDArray[np.float32] | None:
    """`[rows]`, with a mean of one, as `training.class_weights` says; None where all rows count alike."""
    if pipeline.training.class_weights == "none":
        return None
    return np.asarray(compute_sample_weight("balanced", target), dtype=np.float32)
