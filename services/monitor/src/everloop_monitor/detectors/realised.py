"""Performance realised with the labels that have come."""

from __future__ import annotations

from collections.abc import Iterable

from everloop_contracts.pipeline import Pipeline
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.performance import TARGET, calculator, labelled, outputs, value_of
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    known = labelled(pipeline, sample)
    if known is None:
        return None
    metric = pipeline.monitoring.performance.metric
    fitted = calculator(pipeline, known)
    reference = value_of(pipeline, fitted.result, "reference", len(known))

    def read(chunk: Sample) -> Iterable[Reading]:
        answers = outputs(chunk)
        answers = answers[answers[TARGET].notna()]
        if answers.empty:
            return
        # NannyML finds no ROC curve and no F1 in a single class: NaN, which is no reading.
        value = value_of(pipeline, fitted.calculate(answers), "analysis", len(answers))
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
