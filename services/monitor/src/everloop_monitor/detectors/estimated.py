"""Performance estimated without labels: by CBPE for binary targets, by DLE for regression."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from everloop_contracts.pipeline import Pipeline, Task
from everloop_monitor.detectors.detector import Detector, Read
from everloop_monitor.detectors.performance import (
    SCORE,
    TARGET,
    calculator,
    labelled,
    measured,
    options,
    outputs,
)
from everloop_monitor.detectors.sample import Sample
from everloop_monitor.domain import Reading

__all__ = ["DETECTOR"]


def _fit(pipeline: Pipeline, sample: Sample) -> Read | None:
    import nannyml

    known = labelled(pipeline, sample)
    if known is None:
        return None
    reference = measured(pipeline, calculator(pipeline, known).metrics[0].calculate, known)
    metric = pipeline.monitoring.performance.metric
    # DLE estimates the error of each row from the inputs. It gets texts as numbers, as its own encoder would make
    # them: that one cannot read pandas 3's string columns.
    inputs = [*sample.numbers, *sample.texts] if pipeline.target.task is Task.REGRESSION else []

    def frame(rows: Sample, answers: pd.DataFrame) -> pd.DataFrame:
        columns = {**rows.numbers, **rows.texts}
        features = pd.DataFrame({name: columns[name] for name in inputs})
        return features.join(answers, how="right") if inputs else answers

    if inputs:
        estimator = nannyml.DLE(feature_column_names=inputs, **options(pipeline))
    else:
        estimator = nannyml.CBPE(**options(pipeline))
    estimator.fit(frame(sample, known))
    (of,) = estimator.metrics

    def estimate(rows: pd.DataFrame) -> float:
        """What `estimator.estimate` finds, of all rows."""
        if inputs:
            return float(of.estimate(rows))
        raw = rows[SCORE]
        score = estimator.calibrator.calibrate(raw) if estimator.needs_calibration else raw
        # The name that CBPE gives to what was not calibrated.
        return float(of._estimate(rows.assign(**{SCORE: score, f"uncalibrated_{SCORE}": raw})))

    def read(chunk: Sample) -> Iterable[Reading]:
        answers = outputs(chunk).drop(columns=TARGET)
        if answers.empty:
            return
        value = measured(pipeline, estimate, frame(chunk, answers))
        if value is not None:
            yield Reading("estimated_performance", metric, value, reference=reference)

    return read


DETECTOR = Detector(
    _fit,
    ("estimated_performance",),
    by_segment=True,
    learned=False,
    cheap=False,
)
