"""From rows to an evaluated model: search, judge on the newest rows, teach on all of them, export.

The metrics are those of a model that has not seen the holdout, the newest rows. The model that is logged is then
fitted on all rows with the same parameters: the newest season teaches most about the next. The reference sample for
the monitor holds the scores of the first model, since those of the second on rows it has seen would be too good.
"""

from __future__ import annotations

import dataclasses
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
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop_contracts.pipeline import Pipeline, Task
from everloop_features import InputSpec, feeds_from_rows, feeds_from_table, inputs_of
from everloop_trainer.domain import Dataset, Signature, Slice
from everloop_trainer.families import Params
from everloop_trainer.importance import importance
from everloop_trainer.intervals import gains, intervals, resampled
from everloop_trainer.learn import THRESHOLD, Predictions, decide, learn, tune
from everloop_trainer.measure import answers, measure
from everloop_trainer.onnx_model import latency, run_onnx
from everloop_trainer.plots import plots
from everloop_trainer.ports import SCORES, Artifacts, Incumbent
from everloop_trainer.rows import Rows
from everloop_trainer.slices import slices_of

__all__ = ["Evaluated", "evaluate"]

log = logging.getLogger(__name__)

GOLDEN_ROWS: Final = 32


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A model that is ready to be logged; the attributes are those of `Trained`."""

    artifacts: Artifacts
    metrics: dict[str, float]
    baseline_version: int
    baseline_metrics: dict[str, float]
    export_difference: float
    onnx_sha256: str
    intervals: dict[str, tuple[float, float]]
    slices: tuple[Slice, ...]
    model_bytes: int
    p99_seconds: float
    threshold: float
    gains: dict[str, tuple[float, ...]]
    signature: Signature
    baseline_signature: Signature | None


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
    problem, training = everything.problem, pipeline.training
    decision = tune(pipeline, taught, family, params)
    judged = learn(pipeline, taught, family, params, decision)
    predicted = judged.predict(holdout.feeds)
    baseline = _baseline(pipeline, holdout, incumbent)

    def of(
        scores: Predictions | None, threshold: float, rows: npt.NDArray[np.intp] | slice
    ) -> dict[str, float]:
        if scores is None:
            return {}
        return measure(problem, holdout.target[rows], scores[rows], threshold, training.costs)

    def draws(scores: Predictions, threshold: float) -> dict[str, npt.NDArray[np.float64]]:
        return resampled(problem, holdout.target, scores, threshold, training.costs, training.seed)

    every = slice(None)
    drawn = draws(predicted, decision.threshold)
    before = float(incumbent.manifest.get("threshold", THRESHOLD)) if incumbent else THRESHOLD
    # What serves is calibrated, and its threshold set, by the newest rows, as an honest model answered for them.
    final = decide(pipeline, holdout.target, judged.raw(holdout.feeds))
    served = learn(pipeline, everything, family, params, final)
    content = served.onnx.SerializeToString()
    digest = hashlib.sha256(content).hexdigest()
    golden, difference = _golden(holdout, content, served.predict, inputs_of(pipeline))
    told = slices_of(
        holdout.table,
        training.slices,
        lambda rows: of(predicted, decision.threshold, rows),
        None if baseline is None else lambda rows: of(baseline, before, rows),
    )
    matters = importance(
        holdout.feeds,
        training.search.metric,
        lambda feeds, rows: measure(
            problem, holdout.target[rows], judged.predict(feeds), decision.threshold, training.costs
        ),
        training.seed,
    )
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
        "threshold": final.threshold,
    }
    files = {
        "manifest.json": json.dumps(manifest, indent=1).encode(),
        "golden.json": json.dumps(golden).encode(),
        "reference.parquet": _reference(pipeline, holdout, predicted, decision.threshold),
        SCORES: _scores(pipeline, holdout, predicted, baseline),
        "importance.json": json.dumps(matters, indent=1).encode(),
        "slices.json": json.dumps([dataclasses.asdict(item) for item in told], indent=1).encode(),
        **plots(problem, holdout.classes, holdout.target, predicted, decision.threshold, matters),
    }
    return Evaluated(
        artifacts=Artifacts(content, files, {n: feed[:1] for n, feed in holdout.feeds.items()}),
        metrics=of(predicted, decision.threshold, every),
        baseline_version=incumbent.version if incumbent and baseline is not None else 0,
        baseline_metrics=of(baseline, before, every),
        export_difference=difference,
        onnx_sha256=digest,
        intervals=intervals(drawn),
        slices=told,
        model_bytes=len(content),
        p99_seconds=latency(content, holdout.feeds),
        threshold=final.threshold if problem.task is Task.BINARY else 0.0,
        gains={} if baseline is None else gains(drawn, draws(baseline, before)),
        signature=Signature(inputs_of(pipeline), tuple(everything.classes)),
        baseline_signature=_signature(incumbent) if incumbent else None,
    )


def _baseline(pipeline: Pipeline, holdout: Rows, incumbent: Incumbent | None) -> Predictions | None:
    """The incumbent's answers for the holdout, in the holdout's classes; None where it cannot take these rows."""
    if incumbent is None:
        return None
    try:
        answered = run_onnx(
            incumbent.onnx, feeds_from_table(holdout.table, _signature(incumbent).inputs)
        )
    except (KeyError, pa.ArrowInvalid) as error:
        log.warning("the model in Production cannot take the new schema's rows: %s", error)
        return None
    answered = _before_it_knew(answered, holdout.table[pipeline.schema_.id], incumbent.scores)
    classes = incumbent.manifest["classes"]
    if holdout.classes:
        places = [classes.index(label) if label in classes else None for label in holdout.classes]
        columns = [
            answered[:, place] if place is not None else np.zeros(len(answered)) for place in places
        ]
        answered = np.maximum(np.stack(columns, axis=1), 1e-12).astype(np.float32)
    return answered


def _before_it_knew(
    answered: Predictions, record_ids: pa.ChunkedArray, scores: pa.Table | None
) -> Predictions:
    """Puts what the incumbent said about rows that it was judged on in place of what it says since it knows them.

    Beside a model that remembers the holdout no candidate would ever be better.
    """
    if scores is None:
        return answered
    found = pc.index_in(record_ids, value_set=scores["record_id"]).combine_chunks()
    known = np.flatnonzero(found.is_valid().to_numpy(zero_copy_only=False))
    if not len(known):
        return answered
    said = np.array(scores["candidate"].take(found.drop_null()).to_pylist(), dtype=np.float32)
    answered = np.array(answered)
    answered[known] = said
    return answered


def _signature(incumbent: Incumbent) -> Signature:
    inputs = tuple(InputSpec.from_json(item) for item in incumbent.manifest["inputs"])
    return Signature(inputs, tuple(incumbent.manifest["classes"]))


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


def _reference(
    pipeline: Pipeline, holdout: Rows, predicted: Predictions, threshold: float
) -> bytes:
    """The holdout with honest scores, for the monitor."""
    wanted = {*pipeline.inputs, pipeline.schema_.time, pipeline.target.field}
    names = [name for name in pipeline.schema_.fields if name in wanted]
    table = holdout.table.select(names)
    task = holdout.problem.task
    if task is Task.REGRESSION:
        scores, labels = predicted[:, 0], [str(float(value)) for value in predicted[:, 0]]
    elif task is Task.BINARY:
        scores = predicted[:, 1]
        labels = [holdout.classes[index] for index in answers(predicted, threshold)]
    else:
        scores = predicted.max(axis=1)
        labels = [holdout.classes[index] for index in answers(predicted, threshold)]
    table = table.append_column("everloop_score", pa.array(scores.astype(np.float64)))
    return _parquet(table.append_column("everloop_label", pa.array(labels, pa.string())))


def _scores(
    pipeline: Pipeline, holdout: Rows, predicted: Predictions, baseline: Predictions | None
) -> bytes:
    """What both models said about each row of the holdout, for whoever compares them row by row."""

    def rows(values: Predictions) -> pa.Array:
        # Not of a fixed size: Parquet cannot hold nulls of those.
        return pa.array(values.astype(np.float64).tolist(), pa.list_(pa.float64()))

    candidate = rows(predicted)
    return _parquet(
        pa.table(
            {
                "record_id": holdout.table[pipeline.schema_.id],
                "target": pa.array(holdout.target.astype(np.float64)),
                "candidate": candidate,
                "baseline": pa.nulls(len(candidate), candidate.type)
                if baseline is None
                else rows(baseline),
            }
        )
    )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
