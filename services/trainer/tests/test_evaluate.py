"""What the evaluation of a winner tells beside its metrics."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everloop_contracts.metrics import LOWER_IS_BETTER
from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Dataset
from everloop_trainer.evaluate import Evaluated, evaluate
from everloop_trainer.families import load_family
from everloop_trainer.ports import SCORES, Incumbent
from everloop_trainer.rows import prepare
from everloop_trainer.slices import FEWEST, slices_of


def evaluated(
    pipeline: Pipeline,
    table: pa.Table,
    dataset: Dataset,
    family: str = "hist_gradient_boosting",
    incumbent: Incumbent | None = None,
) -> Evaluated:
    rows = prepare(pipeline, table)
    taught, holdout = rows.split(0.3)
    params = {key: item.default for key, item in load_family(family).space.items()}
    return evaluate(pipeline, dataset, taught, holdout, rows, family, params, incumbent)


def rare(table: pa.Table) -> pa.Table:
    """The same rows with an outcome that is seldom true, and uncertain."""
    price = np.nan_to_num(table["price"].to_numpy(zero_copy_only=False))
    chance = 1 / (1 + np.exp(13 - price))
    drawn = np.random.default_rng(8).random(len(table)) < chance
    return table.set_column(4, "outcome", pa.array(drawn.tolist()))


@pytest.mark.parametrize("kind", ["sigmoid", "isotonic"])
def test_a_calibrated_model_is_exported_with_its_calibration_and_loses_less(
    kind: str, make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    table = rare(make_table(rows=6000))
    family = "random_forest" if kind == "sigmoid" else "hist_gradient_boosting"
    plain = evaluated(make_pipeline(class_weights="balanced"), table, make_dataset(), family)
    calibrated = evaluated(
        make_pipeline(class_weights="balanced", calibration=kind), table, make_dataset(), family
    )
    assert calibrated.export_difference < 1e-5
    assert calibrated.onnx_sha256 != plain.onnx_sha256
    assert calibrated.metrics["log_loss"] < plain.metrics["log_loss"] - 0.05
    assert calibrated.metrics["roc_auc"] > plain.metrics["roc_auc"] - 0.01


def test_the_threshold_follows_the_costs(
    make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    table = make_table(rows=2000)
    even = evaluated(make_pipeline(), table, make_dataset())
    assert (even.threshold, "cost" in even.metrics) == (0.5, False)
    costs = {"false_positive": 1, "false_negative": 8}
    careful = evaluated(make_pipeline(costs=costs), table, make_dataset())
    assert 0 < careful.threshold < 0.4
    assert json.loads(careful.artifacts.files["manifest.json"])["threshold"] == careful.threshold
    low, high = careful.intervals["cost"]
    assert low <= careful.metrics["cost"] <= high


def test_it_tells_how_both_models_do_on_the_same_resamples_and_what_both_take(
    make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    table = make_table(rows=2000)
    first = evaluated(make_pipeline(), table, make_dataset(), "logistic_regression")
    assert (first.gains, first.baseline_signature) == ({}, None)
    manifest = json.loads(first.artifacts.files["manifest.json"])
    incumbent = Incumbent(4, first.artifacts.onnx, manifest)
    again = evaluated(make_pipeline(), table, make_dataset(), "logistic_regression", incumbent)
    assert again.signature == again.baseline_signature == first.signature
    assert [spec.to_json() for spec in again.signature.inputs] == manifest["inputs"]
    # The model that serves has seen the holdout: the one that is judged gains nothing over it.
    assert {"roc_auc", "log_loss"} <= again.gains.keys()
    for name, gained in again.gains.items():
        less = name in LOWER_IS_BETTER
        whole = again.metrics[name] - again.baseline_metrics[name]
        assert min(gained) <= (-whole if less else whole) <= max(gained)


def test_a_model_in_production_is_judged_by_what_it_said_before_it_learned_from_the_holdout(
    make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    table = make_table(rows=2000)
    first = evaluated(make_pipeline(), table, make_dataset(), "hist_gradient_boosting")
    manifest = json.loads(first.artifacts.files["manifest.json"])
    scores = pq.read_table(io.BytesIO(first.artifacts.files[SCORES]))

    def baseline(scores: pa.Table | None) -> dict[str, float]:
        incumbent = Incumbent(4, first.artifacts.onnx, manifest, scores)
        return evaluated(
            make_pipeline(), table, make_dataset(), "logistic_regression", incumbent
        ).baseline_metrics

    remembered, honest = baseline(None), baseline(scores)
    assert honest == pytest.approx(first.metrics)
    assert remembered["roc_auc"] > honest["roc_auc"] + 0.005
    # Where only a part of the rows were in its holdout, the others are answered by what serves.
    part = baseline(scores.slice(0, len(scores) // 2))["roc_auc"]
    assert honest["roc_auc"] < part < remembered["roc_auc"]
    assert baseline(scores.slice(0, 0)) == remembered


def test_balanced_weights_raise_the_answers_of_the_rare_class(
    make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    table = rare(make_table(rows=2000))
    for family in ("logistic_regression", "mlp"):
        plain, balanced = (
            json.loads(
                evaluated(
                    make_pipeline(class_weights=weights), table, make_dataset(), family
                ).artifacts.files["golden.json"]
            )["probabilities"]
            for weights in ("none", "balanced")
        )
        assert np.mean([row[1] for row in balanced]) > 1.5 * np.mean([row[1] for row in plain])


def test_an_input_that_matters_more_loses_more(
    make_pipeline: Any, make_table: Any, make_dataset: Any
) -> None:
    found = evaluated(make_pipeline(), make_table(rows=2000), make_dataset())
    losses = json.loads(found.artifacts.files["importance.json"])
    assert next(iter(losses)) == "price"
    assert losses["price"] > losses["city"] > abs(losses["at"])


def test_slices_are_the_values_with_rows_enough_and_null_is_one() -> None:
    column = ["a"] * 40 + ["b"] * FEWEST + ["c"] * (FEWEST - 1) + [None] * 50
    table = pa.table({"field": column, "flag": [True] * len(column)})

    def measured(rows: Any) -> dict[str, float]:
        return {"rows": float(len(rows)), "first": float(rows[0])}

    found = slices_of(table, ["field", "flag"], measured, None)
    assert [(item.field, item.value, item.rows) for item in found] == [
        ("field", "", 50),
        ("field", "a", 40),
        ("field", "b", FEWEST),
        ("flag", "true", len(column)),
    ]
    assert found[2].metrics == {"rows": FEWEST, "first": 40.0}
    assert found[2].baseline_metrics == {}
