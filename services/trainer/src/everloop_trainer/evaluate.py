"""From rows to an evaluated model: search, judge on the newest rows, teach on all of them, export.

The metrics are those of a model that has not seen the holdout, the newest rows. The model that is logged is then
fitted on all rows with the same parameters: the newest season teaches most about the next. The reference sample for
the monitor holds the scores of the first model, since those of the second on rows it has seen would be too good.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from everloop_contracts.pipeline import Pipeline, Task
from everloop_features import (
    FittedFeatures,
    InputSpec,
    feeds_from_rows,
    feeds_from_table,
    fit,
    inputs_of,
)
from everloop_features.graph import compose_model, feature_graph
from everloop_trainer.domain import Dataset
from everloop_trainer.families import Params, load_family
from everloop_trainer.measure import measure
from everloop_trainer.plots import plots
from everloop_trainer.ports import Artifacts, Incumbent
from everloop_trainer.rows import Rows
from everloop_trainer.threads import threads

__all__ = ["Evaluated", "evaluate"]

log = logging.getLogger(__name__)

GOLDEN_ROWS: Final = 32
THRESHOLD: Final = 0.5

Predictions = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model that is ready to be logged."""

    artifacts: Artifacts
    metrics: dict[str, float]
    baseline_version: int
    baseline_metrics: dict[str, float]
    export_difference: float
    onnx_sha256: str


def evaluate(
    pipeline: Pipeline,
    dataset: Dataset,
    taught: Rows,
    holdout: Rows,
    everything: Rows,
    family: str,
    params: Params,
    incumbent: Incumbent | None,
) -> Evaluated:
    """Judges the winner of a search and makes what is logged.

    Args:
        pipeline: declares features and task.
        dataset: where the rows are from.
        taught: rows before the holdout.
        holdout: the newest rows.
        everything: both.
        family: of the winner.
        params: of the winner.
        incumbent: model that serves now; scored on the same holdout.
    """
    problem = everything.problem
    _, predict = _learn(pipeline, taught, family, params)
    predicted = predict(holdout.feeds)
    metrics = measure(problem, holdout.target, predicted)
    baseline = _baseline(holdout, incumbent)
    model, predict = _learn(pipeline, everything, family, params)
    content = model.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    golden, difference = _golden(holdout, content, predict, inputs_of(pipeline))
    manifest = {
        "pipeline": pipeline.name,
        "family": family,
        "params": dict(params),
        "task": problem.task.value,
        "classes": list(everything.classes),
        "inputs": [spec.to_json() for spec in inputs_of(pipeline)],
        "dataset_version": dataset.version,
        "dataset_tag": dataset.git_tag,
        "dataset_commit": dataset.git_commit,
        "onnx_sha256": digest,
        "threshold": THRESHOLD,
    }
    files = {
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        "golden.json": json.dumps(golden).encode(),
        "reference.parquet": _reference(pipeline, holdout, predicted),
        **plots(problem, holdout.target, predicted),
    }
    return Evaluated(
        artifacts=Artifacts(content, files),
        metrics=metrics,
        baseline_version=incumbent.version if incumbent and baseline else 0,
        baseline_metrics=baseline,
        export_difference=difference,
        onnx_sha256=digest,
    )


def _learn(
    pipeline: Pipeline, rows: Rows, name: str, params: Params
) -> tuple[Any, Callable[[Mapping[str, Any]], Predictions]]:
    """Fits features and estimator; returns the exported model, and prediction by the fitted one itself."""
    family, problem = load_family(name), rows.problem
    features: FittedFeatures = fit(pipeline, rows.feeds, rows.target)
    matrix = features.transform(rows.feeds, family.encoding)
    with threadpool_limits(threads()):
        model = family.fit(problem, matrix, rows.target, params, pipeline.training.seed)
    estimator = family.to_onnx(problem, model, matrix.shape[1])
    classes = np.unique(rows.target).astype(int) if problem.classes else np.array([0])

    def predict(feeds: Mapping[str, Any]) -> Predictions:
        answered = family.predict(problem, model, features.transform(dict(feeds), family.encoding))
        if answered.shape[1] == (problem.classes or 1):
            return answered
        # A class that is only in the holdout has no chance with a model that never met it.
        spread = np.zeros((len(answered), problem.classes), dtype=np.float32)
        spread[:, classes] = answered
        return spread

    return compose_model(feature_graph(features, family.encoding), estimator), predict


def _baseline(holdout: Rows, incumbent: Incumbent | None) -> dict[str, float]:
    """The incumbent's metrics on the holdout; none where it cannot take these rows."""
    if incumbent is None:
        return {}
    inputs = [InputSpec.from_json(item) for item in incumbent.manifest["inputs"]]
    try:
        answered = run_onnx(incumbent.onnx, feeds_from_table(holdout.table, inputs))
    except (KeyError, pa.ArrowInvalid) as error:
        log.warning("the model in Production cannot take the new schema's rows: %s", error)
        return {}
    classes = incumbent.manifest["classes"]
    if holdout.classes:
        places = [classes.index(label) if label in classes else None for label in holdout.classes]
        columns = [
            answered[:, place] if place is not None else np.zeros(len(answered)) for place in places
        ]
        answered = np.maximum(np.stack(columns, axis=1), 1e-12).astype(np.float32)
    return measure(holdout.problem, holdout.target, answered)


def run_onnx(content: bytes, feeds: Mapping[str, Any]) -> Predictions:
    """Scores rows as inference does."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answered: Predictions = session.run(None, dict(feeds))[0]
    return answered


def _golden(
    holdout: Rows,
    content: bytes,
    predict: Callable[[Mapping[str, Any]], Predictions],
    inputs: tuple[InputSpec, ...],
) -> tuple[dict[str, Any], float]:
    """Rows with the fitted model's own answers, and how far the export is from them."""
    chosen = np.unique(np.linspace(0, len(holdout) - 1, GOLDEN_ROWS).round().astype(int))
    names = [spec.name for spec in inputs]
    rows = [_record(row) for row in holdout.table.select(names).take(chosen).to_pylist()]
    feeds = feeds_from_rows(rows, inputs)
    expected = predict(feeds)
    difference = float(np.abs(run_onnx(content, feeds) - expected).max())
    return {"rows": rows, "probabilities": expected.astype(float).tolist()}, difference


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as a client would send it in JSON."""
    return {
        name: _rfc3339(value) if isinstance(value, datetime) else value
        for name, value in row.items()
    }


def _rfc3339(moment: datetime) -> str:
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return utc.isoformat().replace("+00:00", "Z")


def _reference(pipeline: Pipeline, holdout: Rows, predicted: Predictions) -> bytes:
    """The holdout with honest scores, for the monitor."""
    wanted = {*pipeline.inputs, pipeline.schema_.time, pipeline.target.field}
    names = [name for name in pipeline.schema_.fields if name in wanted]
    table = holdout.table.select(names)
    task = holdout.problem.task
    if task is Task.REGRESSION:
        scores, labels = predicted[:, 0], [str(float(value)) for value in predicted[:, 0]]
    elif task is Task.BINARY:
        scores = predicted[:, 1]
        labels = [holdout.classes[int(score >= THRESHOLD)] for score in scores]
    else:
        scores = predicted.max(axis=1)
        labels = [holdout.classes[index] for index in predicted.argmax(axis=1)]
    table = table.append_column("everloop_score", pa.array(scores.astype(np.float64)))
    table = table.append_column("everloop_label", pa.array(labels, pa.string()))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
