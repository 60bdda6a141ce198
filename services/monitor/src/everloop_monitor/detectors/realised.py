"""Performance realised with the labels that have come."""

from __future__ import annotations

from collections.abc import Iterable

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.performance import TARGET, calculator, labelled, measured, outputs
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    known = labelled(pipeline, sample)
    if known is None:
        return None
    metric = pipeline.monitoring.performance.metric
    (of,) = calculator(pipeline, known).metrics
    reference = measured(pipeline, of.calculate, known)

    def read(chunk: Sample) -> Iterable[Reading]:
        answers = outputs(chunk)
        answers = answers[answers[TARGET].notna()]
        if answers.empty:
            return
        # NannyML finds no ROC curve and no F1 in a single class: NaN, which is no reading.
        value = measured(pipeline, of.calculate, answers)
        if value is not None:
            yield Reading("realised_performance", metric, value, reference=reference)

    return read


DETECTOR = Detector(
    _fit,
    ("realised_performance",),
    labelled=True,
    by_segment=True,
    learned=False,
    cheap=False,
)
