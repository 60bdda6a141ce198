"""The rules of a rollout: pure, so that every verdict can be made again from its numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from everloop_contracts.latency import quantile, slower_than
from everloop_registry_gateway.domain import ArmTotals, RolloutPlan, Strategy

__all__ = ["Verdict", "error_evidence", "evidence", "judge"]

CERTAINTY = 1e4
"""Evidence that takes a candidate back before it has baked; a healthy one reaches it in one of so many trials."""
_ODDS = tuple(2.0**power for power in range(1, 11))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to become of a rollout.

    Attributes:
        cause: what decided, for counting: a word of a fixed few.
        reason: the same for a person, with the numbers.
    """

    action: Literal["keep", "promote", "abort"]
    cause: str
    reason: str


def judge(
    plan: RolloutPlan,
    candidate: ArmTotals,
    baseline: ArmTotals,
    age: timedelta,
    *,
    alert: str = "",
    heard: bool = True,
) -> Verdict:
    """Judges a running rollout.

    - An `alert` about the candidate's performance aborts where the plan says so.
    - Errors abort as soon as they prove, beyond `CERTAINTY`, that more fail than the plan allows, however few requests
      that took (see `error_evidence`); what is left is compared with the plan's bound once the trial has baked.
    - The latencies are compared once both versions have `min_requests`; never where the baseline has not. Of requests
      that are as quick as the baseline's one in a hundred takes longer than its p99: the candidate is taken back where
      more of its requests take longer than the plan's multiple of that, by the same proof as with errors. The p99 of a
      few requests is the slowest one of them, which proves nothing.
    - A candidate that stood for `bake` and saw `min_requests` is promoted, or kept for a person to decide where the
      strategy is A/B. One that saw fewer waits for more, however old the trial is. At the end of a trial nothing is
      decided by totals of the past: it waits until replicas are heard.

    Args:
        plan: how the trial runs.
        candidate: what the version on trial has done.
        baseline: what the Production version has done meanwhile.
        age: time since the trial began.
        alert: what the monitor measured of the candidate out of bounds; empty if nothing.
        heard: whether the totals are what replicas say now.

    >>> plan = RolloutPlan(Strategy.CANARY, 10, "", timedelta(minutes=30), 1000, 0.01, 2.0, True)
    >>> one_in_three = ArmTotals(requests=3, errors=1)
    >>> judge(plan, one_in_three, ArmTotals(), timedelta(minutes=1)).action
    'keep'
    >>> broken = ArmTotals(requests=4, errors=4)
    >>> judge(plan, broken, ArmTotals(), timedelta(minutes=1)).reason
    'errors: 4 of 4 requests failed (100.00%), 1.00% may'
    >>> judge(plan, ArmTotals(requests=1200), ArmTotals(requests=9000), timedelta(minutes=30)).action
    'promote'
    >>> judge(plan, ArmTotals(), ArmTotals(requests=9000), timedelta(days=3)).reason
    'waits for requests: 0 of 1000'
    """
    if alert and plan.abort_on_performance:
        return Verdict("abort", "performance", f"performance: {alert}")
    failed = _failed(plan, candidate)
    if error_evidence(candidate.errors, candidate.requests, plan.max_error_rate) >= CERTAINTY:
        return Verdict("abort", "errors", f"errors: {failed}")
    if slow := _slower(plan, candidate, baseline):
        return Verdict("abort", "latency", f"latency: {slow}")
    if age < plan.bake:
        left = timedelta(seconds=math.ceil((plan.bake - age).total_seconds()))
        return Verdict("keep", "bake", f"bakes for another {left}")
    if candidate.requests < plan.min_requests:
        seen = f"{candidate.requests} of {plan.min_requests}"
        return Verdict("keep", "requests", f"waits for requests: {seen}")
    if not heard:
        return Verdict("keep", "reports", "waits for what replicas report now")
    if candidate.errors > plan.max_error_rate * candidate.requests:
        return Verdict("abort", "errors", f"errors: {failed}")
    if plan.strategy is Strategy.AB:
        return Verdict("keep", "person", f"waits for a person: {failed}")
    baked = timedelta(seconds=int(age.total_seconds()))
    return Verdict(
        "promote", "baked", f"baked for {baked}: {failed}; {_latencies(plan, candidate, baseline)}"
    )


def error_evidence(errors: int, requests: int, allowed: float) -> float:
    """How many times likelier these errors are if more requests fail than are allowed to than if just as many do.

    The mean of likelihood ratios against `allowed`, over error rates whose odds are 2 to 1024 times as high. For a
    version that keeps to the bound the mean is a supermartingale: by Ville's inequality it ever reaches x, however
    often one looks, with a probability of at most 1/x. A binomial test is valid for one look only. (Ramdas et al.,
    Game-theoretic statistics and safe anytime-valid inference, 2023.)

    Args:
        errors: requests that failed.
        requests: all of them.
        allowed: share that may fail, 0 to 1; where none may, a single error is proof.

    >>> round(error_evidence(1, 3, 0.01), 1), error_evidence(4, 4, 0.01) > 1e4
    (7.1, True)
    """
    if allowed <= 0.0:
        return math.inf if errors else 1.0
    if allowed >= 1.0:
        return 1.0
    odds = allowed / (1.0 - allowed)
    logs = []
    for factor in _ODDS:
        # ln(1 + odds) of the worse rate less that of the allowed one: what each request weighs, failed or not.
        each = math.log1p(odds * factor) - math.log1p(odds)
        logs.append(errors * math.log(factor) - requests * each)
    highest = max(logs)
    mean = highest + math.log(math.fsum(math.exp(log - highest) for log in logs) / len(logs))
    # Beyond what a float holds there is nothing left to tell apart.
    return math.exp(min(mean, 700.0))


def evidence(
    plan: RolloutPlan, candidate: ArmTotals, baseline: ArmTotals, age: timedelta
) -> Mapping[str, float]:
    """The numbers that a verdict rests on, as a gate shows them; latencies in seconds."""
    found = {
        "age_seconds": age.total_seconds(),
        "requests": candidate.requests,
        "errors": candidate.errors,
        "max_error_rate": plan.max_error_rate,
        "baseline_requests": baseline.requests,
        "baseline_errors": baseline.errors,
        "max_latency_ratio": plan.max_latency_ratio,
    }
    for name, arm in (("p99", candidate), ("baseline_p99", baseline)):
        p99 = quantile(arm.latency_counts, 0.99)
        if p99 is not None:
            found[name] = p99
    return found


def _failed(plan: RolloutPlan, candidate: ArmTotals) -> str:
    rate = candidate.errors / candidate.requests if candidate.requests else 0.0
    return (
        f"{candidate.errors} of {candidate.requests} requests failed ({rate:.2%}),"
        f" {plan.max_error_rate:.2%} may"
    )


def _slower(plan: RolloutPlan, candidate: ArmTotals, baseline: ArmTotals) -> str:
    """What is wrong with the candidate's latency; empty if nothing is, or if it cannot be told."""
    if not plan.max_latency_ratio or min(candidate.requests, baseline.requests) < plan.min_requests:
        return ""
    theirs = quantile(baseline.latency_counts, 0.99)
    if theirs is None:
        return ""
    slow = slower_than(candidate.latency_counts, plan.max_latency_ratio * theirs)
    if error_evidence(slow, sum(candidate.latency_counts), 0.01) < CERTAINTY:
        return ""
    return _latencies(plan, candidate, baseline)


def _latencies(plan: RolloutPlan, candidate: ArmTotals, baseline: ArmTotals) -> str:
    mine, theirs = (quantile(arm.latency_counts, 0.99) for arm in (candidate, baseline))
    if mine is None or theirs is None:
        return "latencies not compared, one of the two versions has none"
    allowed = f", {plan.max_latency_ratio:g} times may" if plan.max_latency_ratio else ""
    compared = (
        "" if baseline.requests >= plan.min_requests else f" of only {baseline.requests} requests"
    )
    return (
        f"p99 {mine * 1e3:.3g} ms is {mine / theirs:.3g} times the baseline's"
        f" {theirs * 1e3:.3g} ms{compared}{allowed}"
    )
