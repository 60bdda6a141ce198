"""Gates: properties that hold for any numbers, and the words a person reads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import (
    BetterThanProductionGate,
    ExportParityGate,
    Gate,
    MetricCeilingGate,
    MetricFloorGate,
)
from everloop_registry_gateway.domain import Candidate
from everloop_registry_gateway.gates import CHECKS, evaluate

numbers = st.floats(allow_nan=True, allow_infinity=True)
finite = st.floats(min_value=-1e6, max_value=1e6)


NOTHING_KNOWN = Candidate(
    model="late",
    training_id="t",
    run_id="r",
    model_uri="runs:/r/model",
    onnx_sha256="",
    family="mlp",
    metrics={},
    dataset_version=1,
    dataset_tag="late/v1",
    cause="CAUSE_REQUEST",
    baseline_version=0,
    baseline_metrics={},
    export_difference=0.0,
    event_id="e",
    cause_id="",
)


def judge(gate, production=0, **facts):
    (result,) = evaluate([gate], replace(NOTHING_KNOWN, **facts), production)
    return result


def test_every_gate_of_the_specification_has_its_function():
    kinds = {
        get_args(model.model_fields["kind"].annotation)[0] for model in get_args(get_args(Gate)[0])
    }
    assert set(CHECKS) == kinds


@given(numbers, finite)
def test_a_floor_passes_exactly_what_reaches_it(value, floor):
    result = judge(
        MetricFloorGate(kind="metric_floor", metric="roc_auc", min=floor),
        metrics={"roc_auc": value},
    )
    assert result.passed == (math.isfinite(value) and value >= floor)
    assert result.evidence["min"] == floor
    assert result.message


@given(numbers, finite)
def test_a_ceiling_passes_exactly_what_stays_within_it(value, ceiling):
    result = judge(
        MetricCeilingGate(kind="metric_ceiling", metric="rmse", max=ceiling),
        metrics={"rmse": value},
    )
    assert result.passed == (math.isfinite(value) and value <= ceiling)
    assert result.evidence["max"] == ceiling
    assert result.message


@given(numbers, numbers, st.floats(min_value=-1, max_value=1), st.sampled_from(["f1", "rmse"]))
def test_better_means_a_finite_gain_above_the_margin(value, baseline, margin, metric):
    gate = BetterThanProductionGate(kind="better_than_production", metric=metric, margin=margin)
    result = judge(
        gate,
        production=4,
        metrics={metric: value},
        baseline_version=4,
        baseline_metrics={metric: baseline},
    )
    usable = math.isfinite(value) and math.isfinite(baseline)
    gain = (value - baseline) if metric == "f1" else (baseline - value)
    assert result.passed == (usable and gain > margin)


@given(finite, finite)
def test_equal_models_never_replace_each_other(value, _):
    gate = BetterThanProductionGate(kind="better_than_production", metric="f1")
    facts = {"metrics": {"f1": value}, "baseline_metrics": {"f1": value}, "baseline_version": 1}
    assert not judge(gate, production=1, **facts).passed


@given(st.integers(0, 5), st.integers(1, 5), finite)
def test_a_comparison_with_anything_but_the_present_production_version_never_passes(
    compared, serving, value
):
    gate = BetterThanProductionGate(kind="better_than_production", metric="f1", margin=-1e9)
    facts = {"metrics": {"f1": value}, "baseline_metrics": {"f1": value}}
    result = judge(gate, production=serving, baseline_version=compared, **facts)
    assert result.passed == (compared == serving)
    if compared != serving:
        assert f"version {serving} is in Production now: train again" in result.message
        assert result.evidence["production_version"] == serving


@given(numbers)
def test_with_nothing_in_production_any_real_number_is_better(value):
    gate = BetterThanProductionGate(kind="better_than_production", metric="f1")
    assert judge(gate, production=0, metrics={"f1": value}).passed == math.isfinite(value)


@given(numbers, st.floats(min_value=0, max_value=1))
def test_parity_holds_within_the_tolerance_and_never_for_nan(difference, tolerance):
    gate = ExportParityGate(kind="export_parity", max_difference=tolerance)
    result = judge(gate, export_difference=difference)
    assert result.passed == (not math.isnan(difference) and abs(difference) <= tolerance)


@pytest.mark.parametrize(
    ("gate", "facts", "message"),
    [
        (
            MetricFloorGate(kind="metric_floor", metric="roc_auc", min=0.6),
            {"metrics": {"roc_auc": 0.5512}},
            "roc_auc 0.5512 is below the floor 0.6",
        ),
        (
            MetricFloorGate(kind="metric_floor", metric="f1", min=0.6),
            {"metrics": {"roc_auc": 0.7, "brier": 0.1}},
            "the model has no metric 'f1'; it has: brier, roc_auc",
        ),
        (
            MetricFloorGate(kind="metric_floor", metric="f1", min=0.6),
            {"metrics": {"f1": math.nan}},
            "f1 of the model is nan, not a number to judge by",
        ),
        (
            BetterThanProductionGate(kind="better_than_production", metric="f1"),
            {"metrics": {"f1": 0.7}, "baseline_version": 2, "baseline_metrics": {}},
            "Production version 2 has no metric 'f1'; it has: none",
        ),
        (
            BetterThanProductionGate(kind="better_than_production", metric="f1", margin=0.01),
            {"metrics": {"f1": 0.7}, "baseline_version": 2, "baseline_metrics": {"f1": 0.695}},
            "f1 0.7 against version 2's 0.695 on the same rows: not good enough,"
            " it is to be better by more than 0.01",
        ),
        (
            BetterThanProductionGate(kind="better_than_production", metric="f1", margin=-0.01),
            {"metrics": {"f1": 0.68}, "baseline_version": 2, "baseline_metrics": {"f1": 0.695}},
            "f1 0.68 against version 2's 0.695 on the same rows: not good enough,"
            " it may be worse by less than 0.01",
        ),
        (
            BetterThanProductionGate(kind="better_than_production", metric="f1"),
            {"metrics": {"f1": 0.7}},
            "the training compared it with no version, but version 2 is in Production now: train again",
        ),
        (
            ExportParityGate(kind="export_parity"),
            {"export_difference": 0.02},
            "the ONNX export differs by 0.02 on the golden rows, not within the tolerated 0.0001",
        ),
    ],
)
def test_a_refusal_says_why(gate, facts, message):
    result = judge(gate, production=2, **facts)
    assert not result.passed
    assert result.message == message


def test_all_gates_are_asked_in_order():
    gates: list[Gate] = [
        ExportParityGate(kind="export_parity"),
        MetricFloorGate(kind="metric_floor", metric="accuracy", min=1),
        MetricFloorGate(kind="metric_floor", metric="f1", min=1),
    ]
    facts = replace(NOTHING_KNOWN, metrics={"accuracy": 0, "f1": 2}, export_difference=1)
    results = evaluate(gates, facts, 0)
    assert [(result.gate, result.passed) for result in results] == [
        ("export_parity", False),
        ("metric_floor", False),
        ("metric_floor", True),
    ]
