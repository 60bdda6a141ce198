"""NannyML: calculators fitted once per model version on its reference sample."""

from __future__ import annotations

import io
import logging
import math
import os
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from everloop_contracts.pipeline import FieldType, Pipeline, Task
from everloop_monitor.domain import Readings, Rows
from everloop_monitor.ports import Detector, References

__all__ = ["NannymlDetectors"]

log = logging.getLogger(__name__)

_SCORE, _LABEL, _TARGET = "everloop_score", "everloop_label", "everloop_target"
_NUMBERS, _TEXTS = (FieldType.INT, FieldType.FLOAT), (FieldType.STRING, FieldType.BOOL)
_LARGEST = float(np.finfo(np.float32).max)
_REFERENCE_PARTS = 10
"""Parts of the reference sample whose spread says what reconstruction error is normal."""
_PROBLEMS = {Task.BINARY: "classification_binary", Task.REGRESSION: "regression"}
_METRICS = {Task.BINARY: ("roc_auc", "accuracy", "f1"), Task.REGRESSION: ("rmse", "mae")}


class NannymlDetectors:
    """Fits detectors, and keeps the ones used last."""

    def __init__(self, references: References, keep: int) -> None:
        """Takes where reference samples are, and how many model versions stay fitted."""
        self._references = references
        self._keep = keep
        self._fitted: OrderedDict[tuple[str, int, str], _NannymlDetector] = OrderedDict()

    def prepare(self) -> None:
        """Imports NannyML, which takes 5 to 9 seconds."""
        os.environ["NML_DISABLE_USAGE_LOGGING"] = (
            "1"  # it calls home unless told so before the import
        )
        import nannyml  # noqa: F401

        # It would rather have six chunks at a time; ours come one by one.
        warnings.filterwarnings("ignore", message="The resulting number of chunks is too low")

    def fitted(self, pipeline: Pipeline, version: int, run_id: str) -> Detector:
        """See `Detectors.fitted`."""
        key = (pipeline.name, version, run_id)
        if key not in self._fitted:
            self.prepare()
            sample = pd.read_parquet(io.BytesIO(self._references.load(run_id)))
            # SciPy takes the root of a rounding error below 0 where distributions are equal; see _distance.
            with np.errstate(invalid="ignore"):
                self._fitted[key] = _NannymlDetector(pipeline, sample)
            if len(self._fitted) > self._keep:
                self._fitted.popitem(last=False)
        self._fitted.move_to_end(key)
        return self._fitted[key]


class _NannymlDetector:
    """Calculators of one model version. Each takes a chunk as a whole, and only the columns it needs.

    What the sample cannot teach is left out: drift of columns it lacks, performance where it holds too few labels.
    """

    def __init__(self, pipeline: Pipeline, sample: pd.DataFrame) -> None:
        import nannyml as nml

        self._pipeline = pipeline
        self._whole = nml.CountBasedChunker(chunk_number=1)
        reference = _reference(pipeline, sample)
        self._numbers = [
            name
            for name, spec in pipeline.inputs.items()
            if spec.type in _NUMBERS and name in reference and reference[name].notna().any()
        ]
        self._texts = [
            name
            for name, spec in pipeline.inputs.items()
            if spec.type in _TEXTS and name in reference
        ]
        self._univariate = self._fit_univariate(nml, reference)
        self._reconstruction = self._fit_reconstruction(nml, reference)
        self.reference: float | None = None
        self._categories: dict[str, pd.Index[Any]] = {}
        self._performance: Any = None
        self._estimator: Any = None
        metric, task = pipeline.monitoring.performance.metric, pipeline.target.task
        labelled = reference[reference[_TARGET].notna() & np.isfinite(reference[_SCORE])]
        classes = labelled[_TARGET].nunique()
        if metric not in _METRICS.get(task, ()):
            self._unmeasured(f"{metric} is not measured for {task} targets")
        elif classes < 2:
            self._unmeasured(f"the labels of the reference sample hold {classes} different values")
        else:
            self._fit_performance(nml, labelled, metric, task)

    def _unmeasured(self, why: str) -> None:
        log.warning("pipeline %s: performance is not watched: %s", self._pipeline.name, why)

    def _fit_univariate(self, nml: Any, reference: pd.DataFrame) -> Any:
        columns = [*self._numbers, *self._texts]
        if not columns:
            return None
        rule = self._pipeline.monitoring.drift
        return nml.UnivariateDriftCalculator(
            column_names=columns,
            treat_as_numerical=self._numbers,
            treat_as_categorical=self._texts,
            continuous_methods=[rule.method],
            categorical_methods=[rule.method],
            # The pipeline's rule judges; NannyML's own thresholds would cost a pass over the sample.
            thresholds={rule.method: nml.thresholds.ConstantThreshold(upper=rule.threshold)},
            chunker=self._whole,
        ).fit(reference[columns])

    def _fit_reconstruction(self, nml: Any, reference: pd.DataFrame) -> Any:
        if len(self._numbers) < 2:
            return None
        calculator = nml.DataReconstructionDriftCalculator(
            column_names=self._numbers, chunk_number=_REFERENCE_PARTS
        ).fit(reference[self._numbers])
        calculator.chunker = self._whole
        return calculator

    def _fit_performance(self, nml: Any, labelled: pd.DataFrame, metric: str, task: Task) -> None:
        columns = [_SCORE, _LABEL, _TARGET]
        options: dict[str, Any] = {"metrics": [metric], "y_true": _TARGET, "chunker": self._whole}
        classes = {"y_pred_proba": _SCORE, "y_pred": _LABEL}
        if task is Task.BINARY:
            self._estimator = nml.CBPE(problem_type=_PROBLEMS[task], **options, **classes).fit(
                labelled[columns]
            )
        else:
            classes = {"y_pred": _SCORE}
            self._categories = {name: pd.Index(labelled[name].unique()) for name in self._texts}
            inputs = [*self._numbers, *self._texts]
            self._estimator = nml.DLE(feature_column_names=inputs, **options, **classes).fit(
                self._coded(labelled[[*inputs, *columns]])
            )
        self._performance = nml.PerformanceCalculator(
            problem_type=_PROBLEMS[task], **options, **classes
        ).fit(labelled[columns])
        self.reference = _value(self._performance.result, metric, "reference")

    def read(self, rows: Rows) -> Readings:
        """See `Detector.read`."""
        features = pd.DataFrame(
            {name: rows.numbers[name] for name in self._numbers}
            | {name: rows.texts[name] for name in self._texts}
        )
        error = limit = None
        if self._reconstruction is not None:
            result = self._reconstruction.calculate(features[self._numbers])
            error = _value(result, "reconstruction_error", "analysis")
            limit = _value(result, "reconstruction_error", "analysis", "upper_threshold")
        return Readings(self._distances(features), error, limit, self._estimate(rows, features))

    def _distances(self, features: pd.DataFrame) -> dict[str, float]:
        if self._univariate is None:
            return {}
        method = self._pipeline.monitoring.drift.method
        with np.errstate(invalid="ignore"):
            drift = self._univariate.calculate(features).filter(period="analysis").data
        return {
            name: _distance(float(drift[name, method, "value"].iloc[0]), features[name])
            for name in (*self._numbers, *self._texts)
        }

    def _estimate(self, rows: Rows, features: pd.DataFrame) -> float | None:
        outputs = self._outputs(rows)
        if self._estimator is None or outputs.empty:
            return None
        if self._pipeline.target.task is not Task.BINARY:
            outputs = self._coded(features).join(outputs, how="right")
        metric = self._pipeline.monitoring.performance.metric
        return _value(self._estimator.estimate(outputs), metric, "analysis")

    def realised(self, rows: Rows, actuals: Sequence[str | None]) -> float | None:
        """See `Detector.realised`."""
        if self._performance is None:
            return None
        task, metric = self._pipeline.target.task, self._pipeline.monitoring.performance.metric
        targets = [_target(label, task) for label in actuals]
        data = self._outputs(rows).join(pd.Series(targets, name=_TARGET, dtype=np.float64))
        data = data[data[_TARGET].notna()]
        # NannyML finds no ROC curve and no F1 in a single class: NaN, which is None.
        return None if data.empty else _value(self._performance.calculate(data), metric, "analysis")

    def _coded(self, features: pd.DataFrame) -> pd.DataFrame:
        """Texts as numbers, as DLE's own encoder would; it cannot read pandas 3's string columns."""
        codes = {
            name: known.get_indexer(pd.Index(features[name]))
            for name, known in self._categories.items()
        }
        return features.assign(**codes)

    def _outputs(self, rows: Rows) -> pd.DataFrame:
        """Scores and labels by row number, without the rows for which the model gave no finite score."""
        outputs = pd.DataFrame(
            {_SCORE: rows.scores, _LABEL: np.asarray(rows.labels == "true", dtype=np.float64)}
        )
        return outputs[np.isfinite(rows.scores)]


def _reference(pipeline: Pipeline, sample: pd.DataFrame) -> pd.DataFrame:
    """The sample with the types that chunks have: numbers as float64, texts without nulls."""
    frame: dict[str, Any] = {}
    for name, spec in pipeline.inputs.items():
        # The version learned before the pipeline had this field, or the log keeps its values out.
        if name not in sample or name in pipeline.serving.log.redact:
            continue
        if spec.type in _NUMBERS:
            frame[name] = _floats(sample[name])
        elif spec.type is FieldType.BOOL:
            frame[name] = (
                sample[name].map({True: "true", False: "false"}).fillna("").to_numpy(dtype=object)
            )
        elif spec.type is FieldType.STRING:
            frame[name] = sample[name].astype(object).fillna("").to_numpy(dtype=object)
    frame[_SCORE] = _floats(sample[_SCORE])
    target = sample[pipeline.target.field]
    if pipeline.target.task is Task.REGRESSION:
        frame[_LABEL] = 0.0
        frame[_TARGET] = _floats(target)
    else:
        frame[_LABEL] = (sample[_LABEL].astype(object) == "true").astype("float64").to_numpy()
        frame[_TARGET] = target.map({True: 1.0, False: 0.0}).astype("float64").to_numpy()
    return pd.DataFrame(frame)


def _floats(values: pd.Series[Any]) -> NDArray[np.float64]:
    """Numbers; NaN where null and beyond 32 bits, which the model takes for missing and no square of exists."""
    numbers = pd.to_numeric(values).astype("float64").to_numpy()
    return np.where(np.abs(numbers) <= _LARGEST, numbers, np.nan)


def _distance(value: float, column: pd.Series[Any]) -> float:
    """The distance where NannyML gives NaN: 1 if the feature lost all its values, else 0.

    NaN comes from a column without values, and from the root of a rounding error where distributions are equal.
    """
    if math.isnan(value):
        return 1.0 if column.isna().all() else 0.0
    return value


def _target(label: str | None, task: Task) -> float:
    """The label as a number; NaN where there is none, or one that the task does not know."""
    if label is None or task is not Task.REGRESSION:
        return {"true": 1.0, "false": 0.0}.get(label or "", math.nan)
    try:
        value = float(label)
    except ValueError:
        return math.nan
    return value if abs(value) <= _LARGEST else math.nan


def _value(result: Any, measure: str, period: str, field: str = "value") -> float | None:
    """One number of a NannyML result with a single chunk; None where it is not defined."""
    value = result.filter(period=period).data[measure, field].iloc[0]
    return None if value is None or not math.isfinite(value) else float(value)
