"""Gates: what a trained model must show before it may serve.

A gate is a class in the pipeline's specification, one function here, and its line in `CHECKS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from everloop_contracts.pipeline import (
    LOWER_IS_BETTER,
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
from everloop_registry_gateway.domain import Candidate, GateResult, Signature, SliceMetrics

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
    better = gain > gate.margin
    asked = (
        f"may be worse by less than {-gate.margin:.4g}"
        if gate.margin < 0
        else f"is to be better by more than {gate.margin:.4g}"
    )
    message = (
        f"{gate.metric} {value:.4g} against version {production}'s {baseline:.4g} on the same rows: "
        f"{'good enough' if better else 'not good enough'}, it {asked}"
    )
    if gate.confidence is None:
        return GateResult(gate.kind, better, message, evidence)
    sure, tested, numbers = _paired_bootstrap(gate, gate.confidence, candidate.gains)
    return GateResult(gate.kind, better and sure, f"{message}; {tested}", {**evidence, **numbers})


def _paired_bootstrap(
    gate: BetterThanProductionGate, confidence: float, gains: Mapping[str, tuple[float, ...]]
) -> tuple[bool, str, Mapping[str, float]]:
    """Whether the gain exceeds the margin in enough resamples: percentile bootstrap (Efron & Tibshirani 1993, 13.3).

    The rows of a resample are the same for both models, so that what is hard about them cancels out.
    """
    resamples = gains.get(gate.metric, ())
    numbers = {"confidence": confidence, "resamples": float(len(resamples))}
    if not resamples:
        return False, f"the training sent no resamples of {gate.metric} to test it by", numbers
    share = sum(gain > gate.margin for gain in resamples) / len(resamples)
    # NaN is no gain.
    ordered = sorted(gain if math.isfinite(gain) else -math.inf for gain in resamples)
    low = ordered[math.floor((1 - confidence) * (len(ordered) - 1))]
    verdict = "enough" if share >= confidence else "not enough"
    tested = (
        f"so in {share:.1%} of {len(resamples)} resamples, {verdict}: {confidence:.1%} are asked"
    )
    return share >= confidence, tested, numbers | {"share": share, "gain_low": low}


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


def _slice_floor(gate: SliceFloorGate, candidate: Candidate, production: int) -> GateResult:
    return _every_slice(gate, candidate, gate.min, {"min": gate.min}, lower_is_better=False)


def _slice_ceiling(gate: SliceCeilingGate, candidate: Candidate, production: int) -> GateResult:
    return _every_slice(gate, candidate, gate.max, {"max": gate.max}, lower_is_better=True)


def _every_slice(
    gate: SliceFloorGate | SliceCeilingGate,
    candidate: Candidate,
    bound: float,
    evidence: Mapping[str, float],
    *,
    lower_is_better: bool,
) -> GateResult:
    judged, numbers = _judged(gate, candidate)
    evidence = {**evidence, **numbers}
    if not judged:
        return GateResult(gate.kind, False, _nothing_to_judge(gate), evidence)
    pick = max if lower_is_better else min
    worst = pick(judged, key=lambda part: part.metrics[gate.metric])
    value = worst.metrics[gate.metric]
    passed = value <= bound if lower_is_better else value >= bound
    verdict = "within" if passed else "beyond"
    message = (
        f"the worst {gate.metric} of {len(judged)} slices is {value:.4g}, {verdict} the bound {bound:.4g}: "
        f"{worst.field} {worst.value!r} with {worst.rows} rows"
    )
    return GateResult(gate.kind, passed, message, evidence | {"value": value, "rows": worst.rows})


def _fairness_difference(
    gate: FairnessDifferenceGate, candidate: Candidate, production: int
) -> GateResult:
    judged, numbers = _judged(gate, candidate)
    evidence = {"max_difference": gate.max_difference, **numbers}
    by_field: dict[str, list[SliceMetrics]] = {}
    for part in judged:
        by_field.setdefault(part.field, []).append(part)
    pairs = []
    for parts in by_field.values():
        low, high = (pick(parts, key=lambda part: part.metrics[gate.metric]) for pick in (min, max))
        pairs.append((high.metrics[gate.metric] - low.metrics[gate.metric], low, high))
    if not any(len(parts) > 1 for parts in by_field.values()):
        return GateResult(gate.kind, False, _nothing_to_judge(gate, "two slices"), evidence)
    difference, low, high = max(pairs, key=lambda pair: pair[0])
    passed = difference <= gate.max_difference
    verdict = "within" if passed else "beyond"
    message = (
        f"{gate.metric} differs by {difference:.4g} between {low.field} {low.value!r} and {high.value!r}, "
        f"{verdict} the tolerated {gate.max_difference:.4g}"
    )
    found = {
        "difference": difference,
        "low": low.metrics[gate.metric],
        "high": high.metrics[gate.metric],
    }
    return GateResult(gate.kind, passed, message, evidence | found)


def _judged(
    gate: SliceFloorGate | SliceCeilingGate | FairnessDifferenceGate, candidate: Candidate
) -> tuple[list[SliceMetrics], Mapping[str, float]]:
    """The slices that a gate judges, and how many it does and does not."""
    mine = [part for part in candidate.slices if gate.field in (None, part.field)]
    judged = [
        part
        for part in mine
        if part.rows >= gate.min_rows and math.isfinite(part.metrics.get(gate.metric, math.nan))
    ]
    counts = {"slices": float(len(judged)), "not_judged": float(len(mine) - len(judged))}
    return judged, counts


def _nothing_to_judge(
    gate: SliceFloorGate | SliceCeilingGate | FairnessDifferenceGate, wanted: str = "slice"
) -> str:
    where = f" of {gate.field}" if gate.field else ""
    return f"no {wanted}{where} with {gate.min_rows} rows and a {gate.metric}: nothing is proven"


def _latency_budget(gate: LatencyBudgetGate, candidate: Candidate, production: int) -> GateResult:
    limit = gate.max_p99.total_seconds()
    evidence = {"p99_seconds": candidate.p99_seconds, "max_p99_seconds": limit}
    if not candidate.p99_seconds > 0:
        return GateResult(gate.kind, False, "the training measured no latency", evidence)
    passed = candidate.p99_seconds <= limit
    verdict = "within" if passed else "beyond"
    message = (
        f"p99 {candidate.p99_seconds * 1e3:.4g} ms is {verdict} the budget of {limit * 1e3:.4g} ms"
    )
    return GateResult(gate.kind, passed, message, evidence)


def _size_budget(gate: SizeBudgetGate, candidate: Candidate, production: int) -> GateResult:
    evidence = {"bytes": float(candidate.model_bytes), "max_bytes": float(gate.max_bytes)}
    if not candidate.model_bytes > 0:
        return GateResult(gate.kind, False, "the training told no size", evidence)
    passed = candidate.model_bytes <= gate.max_bytes
    verdict = "within" if passed else "beyond"
    message = f"{candidate.model_bytes} bytes are {verdict} the budget of {gate.max_bytes}"
    return GateResult(gate.kind, passed, message, evidence)


def _signature(gate: SignatureGate, candidate: Candidate, production: int) -> GateResult:
    if not production:
        return GateResult(gate.kind, True, "nothing is in Production, so nobody asks it yet", {})
    mine, theirs = candidate.signature, candidate.baseline_signature
    if candidate.baseline_version != production or mine is None or theirs is None:
        return GateResult(
            gate.kind,
            False,
            f"the training told no signatures of it and of version {production}: train again",
            {"baseline_version": candidate.baseline_version, "production_version": production},
        )
    problems = [*_input_problems(mine, theirs)]
    if mine.classes != theirs.classes:
        problems.append(f"the classes are {mine.classes}, not {theirs.classes}")
    evidence = {
        "inputs": float(len(mine.inputs)),
        "baseline_inputs": float(len(theirs.inputs)),
        "problems": float(len(problems)),
    }
    message = "; ".join(problems) or f"whoever asks version {production} can ask it in the same way"
    return GateResult(gate.kind, not problems, message, evidence)


def _input_problems(mine: Signature, theirs: Signature) -> Iterator[str]:
    """Why a request that fits one signature may not fit the other."""
    for name, (kind, nullable) in theirs.inputs.items():
        if name not in mine.inputs:
            yield f"it takes no input {name!r}"
            continue
        new_kind, new_nullable = mine.inputs[name]
        if new_kind != kind:
            yield f"{name!r} is {new_kind}, not {kind}"
        if nullable and not new_nullable:
            yield f"{name!r} must not be null any more"
    for name, (_, nullable) in mine.inputs.items():
        if name not in theirs.inputs and not nullable:
            yield f"it needs a new input {name!r}"


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
    "slice_floor": _slice_floor,
    "slice_ceiling": _slice_ceiling,
    "fairness_difference": _fairness_difference,
    "latency_budget": _latency_budget,
    "size_budget": _size_budget,
    "signature": _signature,
}
