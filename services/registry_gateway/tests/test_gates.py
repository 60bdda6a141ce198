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
    FairnessDifferenceGate,
    Gate,
    LatencyBudgetGate,
    MetricCeilingGate,
    MetricFloorGate,
    SignatureGate,
    SizeBudgetGate,
    SliceCeilingGate,
    SliceFloorGate,
)
from everloop_contracts.stubs.everloop.training.v1 import events_pb2
from everloop_registry_gateway.convert import candidate_of
from everloop_registry_gateway.domain import Candidate, Signature, SliceMetrics
from everloop_registry_gateway.gates import CHECKS, evaluate
from everloop_runtime.events import new_event

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


BETTER = {
    "metrics": {"roc_auc": 0.72},
    "baseline_version": 1,
    "baseline_metrics": {"roc_auc": 0.7},
}


def proven(resamples, margin=0.0, confidence=0.95, **facts):
    gate = BetterThanProductionGate(
        kind="better_than_production", metric="roc_auc", margin=margin, confidence=confidence
    )
    return judge(gate, production=1, gains={"roc_auc": tuple(resamples)}, **{**BETTER, **facts})


@given(
    st.lists(numbers, min_size=1, max_size=200),
    st.floats(min_value=-0.5, max_value=0.019),
    st.floats(min_value=0.51, max_value=0.99),
)
def test_a_gain_is_proven_by_so_many_resamples_and_nan_is_none(resamples, margin, confidence):
    result = proven(resamples, margin, confidence)
    share = sum(gain > margin for gain in resamples) / len(resamples)
    assert result.passed == (share >= confidence)
    assert result.evidence["share"] == pytest.approx(share)
    assert result.evidence["resamples"] == len(resamples)


def test_a_gain_on_all_rows_that_chance_explains_is_not_enough():
    by_chance = [0.02 + (number - 100) / 1000 for number in range(200)]
    result = proven(by_chance)
    assert not result.passed
    assert "so in 59.5% of 200 resamples, not enough: 95.0% are asked" in result.message
    assert result.evidence["gain"] == pytest.approx(0.02)
    assert result.evidence["gain_low"] == pytest.approx(-0.071)
    assert proven(by_chance, confidence=None).passed
    assert proven([gain + 0.1 for gain in by_chance]).passed


def test_resamples_cannot_mend_a_worse_model_and_none_prove_nothing():
    assert not proven([1.0] * 200, metrics={"roc_auc": 0.69}).passed
    result = proven([])
    assert not result.passed
    assert "sent no resamples of roc_auc" in result.message


SLICES = (
    SliceMetrics("carrier", "AA", 900, {"f1": 0.8, "rmse": 3.0}),
    SliceMetrics("carrier", "ZZ", 120, {"f1": 0.5, "rmse": 9.0}),
    SliceMetrics("carrier", "small", 9, {"f1": 0.0, "rmse": 99.0}),
    SliceMetrics("carrier", "undefined", 500, {}),
    SliceMetrics("origin", "JFK", 700, {"f1": 0.4, "rmse": 4.0}),
)


@pytest.mark.parametrize(
    ("gate", "passed", "evidence"),
    [
        (
            SliceFloorGate(kind="slice_floor", metric="f1", field="carrier", min=0.5),
            True,
            {"value": 0.5, "rows": 120, "min": 0.5, "slices": 2, "not_judged": 2},
        ),
        (
            SliceFloorGate(kind="slice_floor", metric="f1", field="carrier", min=0.51),
            False,
            {"value": 0.5},
        ),
        (
            SliceFloorGate(kind="slice_floor", metric="f1", min=0.45),
            False,
            {"value": 0.4, "slices": 3},
        ),
        (
            SliceFloorGate(kind="slice_floor", metric="f1", min=0.45, min_rows=800),
            True,
            {"value": 0.8},
        ),
        (
            SliceFloorGate(kind="slice_floor", metric="f1", min=0.1, min_rows=1),
            False,
            {"value": 0.0},
        ),
        (
            SliceFloorGate(kind="slice_floor", metric="f1", field="dest", min=0),
            False,
            {"slices": 0},
        ),
        (
            SliceCeilingGate(kind="slice_ceiling", metric="rmse", max=9.0),
            True,
            {"value": 9.0, "max": 9.0},
        ),
        (SliceCeilingGate(kind="slice_ceiling", metric="rmse", max=8.9), False, {"value": 9.0}),
        (
            FairnessDifferenceGate(kind="fairness_difference", metric="f1", max_difference=0.31),
            True,
            {"difference": pytest.approx(0.3), "low": 0.5, "high": 0.8, "max_difference": 0.31},
        ),
        (
            FairnessDifferenceGate(kind="fairness_difference", metric="f1", max_difference=0.29),
            False,
            {"difference": pytest.approx(0.3)},
        ),
        (
            FairnessDifferenceGate(
                kind="fairness_difference", metric="f1", field="origin", max_difference=1
            ),
            False,
            {"slices": 1},
        ),
        (
            LatencyBudgetGate(kind="latency_budget", max_p99="2ms"),
            True,
            {"p99_seconds": 0.002, "max_p99_seconds": 0.002},
        ),
        (LatencyBudgetGate(kind="latency_budget", max_p99="1ms"), False, {"p99_seconds": 0.002}),
        (
            SizeBudgetGate(kind="size_budget", max_bytes=5000),
            True,
            {"bytes": 5000, "max_bytes": 5000},
        ),
        (SizeBudgetGate(kind="size_budget", max_bytes=4999), False, {"bytes": 5000}),
    ],
)
def test_slices_and_budgets(gate, passed, evidence):
    result = judge(gate, slices=SLICES, p99_seconds=0.002, model_bytes=5000)
    assert result.passed == passed, result.message
    assert {name: result.evidence[name] for name in evidence} == evidence


@pytest.mark.parametrize(
    "gate",
    [
        SliceFloorGate(kind="slice_floor", metric="f1", min=-1),
        SliceCeilingGate(kind="slice_ceiling", metric="rmse", max=1e9),
        FairnessDifferenceGate(kind="fairness_difference", metric="f1", max_difference=1),
        LatencyBudgetGate(kind="latency_budget", max_p99="1h"),
        SizeBudgetGate(kind="size_budget", max_bytes=2**40),
    ],
)
def test_what_was_not_measured_passes_no_gate(gate):
    assert not judge(gate).passed
    assert not judge(gate, p99_seconds=math.nan).passed


SIGNATURE = Signature({"x": ("float", True), "who": ("string", False)}, ("no", "yes"))


@pytest.mark.parametrize(
    ("mine", "problem"),
    [
        (SIGNATURE, ""),
        (Signature({**SIGNATURE.inputs, "more": ("int", True)}, SIGNATURE.classes), ""),
        (Signature({**SIGNATURE.inputs, "who": ("string", True)}, SIGNATURE.classes), ""),
        (
            Signature({**SIGNATURE.inputs, "more": ("int", False)}, SIGNATURE.classes),
            "it needs a new input 'more'",
        ),
        (Signature({"x": ("float", True)}, SIGNATURE.classes), "it takes no input 'who'"),
        (
            Signature({**SIGNATURE.inputs, "x": ("int", True)}, SIGNATURE.classes),
            "'x' is int, not float",
        ),
        (
            Signature({**SIGNATURE.inputs, "x": ("float", False)}, SIGNATURE.classes),
            "'x' must not be null any more",
        ),
        (Signature(SIGNATURE.inputs, ("yes", "no")), "the classes are"),
        (None, "told no signatures"),
    ],
)
def test_a_signature_fits_whoever_asks_the_version_in_production(mine, problem):
    facts = {"signature": mine, "baseline_signature": SIGNATURE, "baseline_version": 3}
    result = judge(SignatureGate(kind="signature"), production=3, **facts)
    assert result.passed == (not problem), result.message
    assert problem in result.message
    assert not judge(SignatureGate(kind="signature"), production=4, **facts).passed
    assert judge(SignatureGate(kind="signature"), production=0, **facts).passed


def test_facts_come_from_the_event_as_they_are():
    trained = events_pb2.ModelTrained(pipeline="late", model_bytes=7, p99_seconds=0.25)
    trained.gains["f1"].values.extend([0.1, -0.1])
    part = trained.slices.add(field="carrier", value="AA", rows=3)
    part.metrics["f1"] = 0.5
    trained.signature.inputs.add(name="x", type="float", nullable=True)
    trained.signature.classes.extend(["no", "yes"])
    candidate = candidate_of(new_event("test", "late", trained, id="e", cause="c"), trained)
    assert (candidate.model_bytes, candidate.p99_seconds) == (7, 0.25)
    assert candidate.gains == {"f1": (0.1, -0.1)}
    assert candidate.slices == (SliceMetrics("carrier", "AA", 3, {"f1": 0.5}),)
    assert candidate.signature == Signature({"x": ("float", True)}, ("no", "yes"))
    assert candidate.baseline_signature is None
