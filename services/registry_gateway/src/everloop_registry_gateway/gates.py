"""Gates: what a trained model must show before it may serve.

A gate is a class in the pipeline's specification, one function here, and its line in `CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from everloop_contracts.pipeline import (
    LOWER_IS_BETTER,
    BetterThanProductionGate,
    ExportParityGate,
    Gate,
    MetricCeilingGate,
    MetricFloorGate,
)
from everloop_registry_gateway.domain import Candidate, GateResult

__all__ = ["evaluate"]


def evaluate(
    gates: Iterable[Gate], candidate: Candidate, production: int
) -> tuple[GateResult, ...]:
    """Asks every gate, in order; all are asked, so that a person sees every reason at once.

    Args:
        gates: as the pipeline lists them.
        candidate: the trained model.
        production: version that serves now; 0 if none does.
    """
    return tuple(CHECKS[gate.kind](gate, candidate, production) for gate in gates)


def _metric_floor(gate: MetricFloorGate, candidate: Candidate, production: int) -> GateResult:
    value, problem = _metric(candidate.metrics, gate.metric, "the model")
    evidence = {"value": value, "min": gate.min}
    if problem:
        return GateResult(gate.kind, False, problem, evidence)
    if value < gate.min:
        return GateResult(
            gate.kind,
            False,
            f"{gate.metric} {value:.4g} is below the floor {gate.min:.4g}",
            evidence,
        )
    return GateResult(
        gate.kind, True, f"{gate.metric} {value:.4g} reaches the floor {gate.min:.4g}", evidence
    )


def _metric_ceiling(gate: MetricCeilingGate, candidate: Candidate, production: int) -> GateResult:
    value, problem = _metric(candidate.metrics, gate.metric, "the model")
    evidence = {"value": value, "max": gate.max}
    if problem:
        return GateResult(gate.kind, False, problem, evidence)
    passed = value <= gate.max
    verdict = "is within" if passed else "is above"
    message = f"{gate.metric} {value:.4g} {verdict} the ceiling {gate.max:.4g}"
    return GateResult(gate.kind, passed, message, evidence)


def _better_than_production(
    gate: BetterThanProductionGate, candidate: Candidate, production: int
) -> GateResult:
    value, problem = _metric(candidate.metrics, gate.metric, "the model")
    if problem:
        return GateResult(gate.kind, False, problem, {"value": value})
    if not production:
        return GateResult(
            gate.kind,
            True,
            "nothing is in Production, so there is nothing to beat",
            {"value": value},
        )
    if candidate.baseline_version != production:
        # Other rows would make the comparison worthless, and no comparison is no proof.
        compared = (
            f"version {candidate.baseline_version}" if candidate.baseline_version else "no version"
        )
        return GateResult(
            gate.kind,
            False,
            f"the training compared it with {compared}, but version {production} is in Production now: train again",
            {
                "value": value,
                "baseline_version": candidate.baseline_version,
                "production_version": production,
            },
        )
    baseline, problem = _metric(
        candidate.baseline_metrics, gate.metric, f"Production version {production}"
    )
    gain = baseline - value if gate.metric in LOWER_IS_BETTER else value - baseline
    evidence = {
        "value": value,
        "baseline": baseline,
        "gain": gain,
        "margin": gate.margin,
        "baseline_version": production,
    }
    if problem:
        return GateResult(gate.kind, False, problem, evidence)
    passed = gain > gate.margin
    asked = (
        f"may be worse by less than {-gate.margin:.4g}"
        if gate.margin < 0
        else f"is to be better by more than {gate.margin:.4g}"
    )
    message = (
        f"{gate.metric} {value:.4g} against version {production}'s {baseline:.4g} on the same rows: "
        f"{'good enough' if passed else 'not good enough'}, it {asked}"
    )
    return GateResult(gate.kind, passed, message, evidence)


def _export_parity(gate: ExportParityGate, candidate: Candidate, production: int) -> GateResult:
    difference = candidate.export_difference
    evidence = {"difference": difference, "max_difference": gate.max_difference}
    # Written so that NaN fails.
    passed = abs(difference) <= gate.max_difference
    verdict = "within" if passed else "not within"
    message = (
        f"the ONNX export differs by {difference:.3g} on the golden rows, "
        f"{verdict} the tolerated {gate.max_difference:.3g}"
    )
    return GateResult(gate.kind, passed, message, evidence)


def _metric(metrics: Mapping[str, float], name: str, whose: str) -> tuple[float, str]:
    """Returns a metric and an empty text, or NaN and what is wrong with it."""
    if name not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        return math.nan, f"{whose} has no metric {name!r}; it has: {known}"
    if not math.isfinite(metrics[name]):
        return metrics[name], f"{name} of {whose} is {metrics[name]}, not a number to judge by"
    return metrics[name], ""


CHECKS: Mapping[str, Callable[[Any, Candidate, int], GateResult]] = {
    "metric_floor": _metric_floor,
    "metric_ceiling": _metric_ceiling,
    "better_than_production": _better_than_production,
    "export_parity": _export_parity,
}
