"""The distance of what the model answers to what it answered on the reference sample."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from everloop_contracts.pipeline import Pipeline, Task
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.detectors.univariate import Distance
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    methods, task = pipeline.monitoring.drift.methods, pipeline.target.task
    score = label = None
    if task is not Task.MULTICLASS and np.isfinite(sample.scores).any():
        score = Distance(methods.number, sample.scores, text=False)
    if task is not Task.REGRESSION:
        label = Distance(methods.text, sample.labels.astype(np.int64), text=True)

    def read(chunk: Sample) -> Iterable[Reading]:
        if score is not None:
            value = score.to(chunk.scores)
            yield Reading("output_drift", methods.number, value, feature="score", distance=True)
        if label is not None:
            value = label.to(chunk.labels.astype(np.int64))
            yield Reading("output_drift", methods.text, value, feature="label", distance=True)

    return read if score or label else None


DETECTOR = Detector(_fit, ("output_drift",), by_segment=False)
