"""The rules of a rollout, case by case and as properties."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.latency import BUCKETS, bucket_limit, quantile
from everloop_registry_gateway.domain import ArmTotals, RolloutPlan, Strategy
from everloop_registry_gateway.judge import CERTAINTY, error_evidence, evidence, judge

MINUTE = timedelta(minutes=1)
PLAN = RolloutPlan(Strategy.CANARY, 10, "", 30 * MINUTE, 1000, 0.01, 2.0, True)


def arm(requests: int, errors: int = 0, bucket: int = 10) -> ArmTotals:
    counts = tuple(requests if n == bucket else 0 for n in range(BUCKETS))
    return ArmTotals(requests, errors, requests, counts)


BASELINE = arm(9000)


@pytest.mark.parametrize(
    ("requests", "errors", "minutes", "action", "cause"),
    [
        (3, 1, 1, "keep", "bake"),
        (10, 2, 1, "keep", "bake"),
        (3, 3, 1, "abort", "errors"),
        (80, 8, 1, "abort", "errors"),  # ten times what is allowed: long before 1000 requests
        (1000, 15, 29, "keep", "bake"),  # bad luck, perhaps
        (1000, 15, 30, "abort", "errors"),  # there was time enough
        (1000, 10, 30, "promote", "baked"),
        (999, 0, 30, "keep", "requests"),
        (1000, 0, 29, "keep", "bake"),
        (0, 0, 10_000, "keep", "requests"),
    ],
)
def test_errors_requests_and_time(requests, errors, minutes, action, cause):
    verdict = judge(PLAN, arm(requests, errors), BASELINE, minutes * MINUTE)
    assert (verdict.action, verdict.cause) == (action, cause)


@pytest.mark.parametrize(
    ("requests", "baseline", "bucket", "ratio", "aborts"),
    [
        (1000, 1000, 14, 2.0, False),  # four buckets are twice as long, which is allowed
        (1000, 1000, 15, 2.0, True),
        (1000, 1000, 63, 0.0, False),  # no bound
        (999, 1000, 63, 2.0, False),
        (1000, 999, 63, 2.0, False),  # nothing to compare with yet
    ],
)
def test_latencies_are_compared_once_both_have_seen_enough(
    requests, baseline, bucket, ratio, aborts
):
    plan = replace(PLAN, max_latency_ratio=ratio)
    verdict = judge(plan, arm(requests, bucket=bucket), arm(baseline), MINUTE)
    assert (verdict.action == "abort", verdict.cause == "latency") == (aborts, aborts)


def test_the_slowest_of_a_few_requests_prove_nothing():
    plan = replace(PLAN, min_requests=50)
    counts = [0] * BUCKETS
    counts[10], counts[30] = 172, 3
    few = ArmTotals(175, 0, 175, tuple(counts))
    assert (quantile(few.latency_counts, 0.99) or 0.0) > 2 * bucket_limit(10)
    assert judge(plan, few, arm(60), MINUTE).cause == "bake"
    counts[10], counts[30] = 160, 15
    many = ArmTotals(175, 0, 175, tuple(counts))
    assert judge(plan, many, arm(60), MINUTE).cause == "latency"


def test_a_reason_holds_the_numbers():
    slow = judge(PLAN, arm(1000, bucket=18), arm(1000), MINUTE)
    assert slow.reason == ("latency: p99 1.13 ms is 4 times the baseline's 0.282 ms, 2 times may")
    good = judge(PLAN, arm(1200, 2), arm(50), 31 * MINUTE)
    assert good.reason == (
        "baked for 0:31:00: 2 of 1200 requests failed (0.17%), 1.00% may;"
        " p99 0.282 ms is 1 times the baseline's 0.282 ms of only 50 requests, 2 times may"
    )
    assert judge(PLAN, arm(9), BASELINE, MINUTE).reason == "bakes for another 0:29:00"
    numbers = evidence(PLAN, arm(1200, 2), arm(0), 31 * MINUTE)
    assert (numbers["requests"], numbers["errors"], numbers["age_seconds"]) == (1200, 2, 1860)
    assert "baseline_p99" not in numbers


def test_an_alert_about_the_performance_aborts_where_the_plan_says_so():
    alert = "estimated roc_auc 0.5 < 0.6 in chunk late/2/0"
    verdict = judge(PLAN, arm(10), BASELINE, MINUTE, alert=alert)
    assert (verdict.action, verdict.reason) == ("abort", f"performance: {alert}")
    deaf = replace(PLAN, abort_on_performance=False)
    assert judge(deaf, arm(10), BASELINE, MINUTE, alert=alert).action == "keep"


def test_an_a_b_test_waits_for_a_person_and_is_taken_back_as_a_canary_is():
    plan = replace(PLAN, strategy=Strategy.AB)
    assert judge(plan, arm(5000), BASELINE, 40 * MINUTE).cause == "person"
    assert judge(plan, arm(5000, 51), BASELINE, 40 * MINUTE).action == "abort"


@pytest.mark.parametrize("errors", [0, 51])
def test_totals_of_the_past_end_no_trial_by_its_bounds(errors):
    verdict = judge(PLAN, arm(5000, errors), BASELINE, 40 * MINUTE, heard=False)
    assert (verdict.action, verdict.cause) == ("keep", "reports")


def test_where_no_request_may_fail_the_first_that_does_is_enough():
    plan = replace(PLAN, max_error_rate=0.0)
    assert judge(plan, arm(1, 1), BASELINE, MINUTE).action == "abort"
    assert judge(plan, arm(1000), BASELINE, 30 * MINUTE).action == "promote"


def test_where_all_may_fail_errors_do_not_abort():
    plan = replace(PLAN, max_error_rate=1.0)
    assert judge(plan, arm(1000, 1000), BASELINE, 30 * MINUTE).action == "promote"


TOTALS = st.integers(0, 5000).flatmap(
    lambda requests: st.builds(
        arm, st.just(requests), st.integers(0, requests), st.integers(0, BUCKETS - 1)
    )
)


@given(candidate=TOTALS, baseline=TOTALS, seconds=st.integers(0, 10_000))
def test_only_what_baked_and_kept_its_bounds_is_promoted(candidate, baseline, seconds):
    age = timedelta(seconds=seconds)
    verdict = judge(PLAN, candidate, baseline, age)
    if verdict.action == "promote":
        assert age >= PLAN.bake and candidate.requests >= PLAN.min_requests
        assert candidate.errors <= PLAN.max_error_rate * candidate.requests
    if verdict.action == "abort" and verdict.cause == "errors":
        assert candidate.errors > PLAN.max_error_rate * candidate.requests
    assert judge(PLAN, candidate, baseline, age) == verdict


@given(
    requests=st.integers(1, 2000),
    errors=st.integers(0, 1999),
    allowed=st.floats(1e-6, 0.999999),
)
def test_an_error_more_never_speaks_for_a_candidate(requests, errors, allowed):
    errors = min(errors, requests - 1)
    less, more = (error_evidence(n, requests, allowed) for n in (errors, errors + 1))
    assert 0.0 <= less <= more


@given(requests=st.integers(0, 2000), allowed=st.floats(1e-6, 0.999999))
def test_no_error_is_no_evidence(requests, allowed):
    assert error_evidence(0, requests, allowed) <= 1.0


def test_a_candidate_at_the_bound_is_hardly_ever_taken_back_though_it_is_looked_at_all_the_time():
    draw = random.Random(7)
    aborted = 0
    for _ in range(300):
        errors = 0
        for requests in range(1, 1001):
            if draw.random() < 0.01:
                errors += 1
                if error_evidence(errors, requests, 0.01) >= CERTAINTY / 100:
                    aborted += 1
                    break
    # At a hundredth of the certainty one of a hundred may be: three of 300, give or take.
    assert aborted <= 9


@given(micros=st.lists(st.integers(1, 2_700_000), min_size=1, max_size=200))
def test_the_slowest_request_is_within_the_bucket_that_holds_it(micros):
    counts = [0] * BUCKETS
    for value in micros:
        counts[next(n for n in range(BUCKETS) if value * 1e-6 <= bucket_limit(n))] += 1
    slowest = quantile(counts, 1.0)
    assert slowest is not None
    assert max(micros) * 1e-6 <= slowest <= max(50e-6, max(micros) * 1e-6 * 2**0.25) * (1 + 1e-9)


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=BUCKETS))
def test_quantiles_are_in_order(counts):
    found = [quantile(counts, share) for share in (0.5, 0.9, 0.99, 1.0)]
    known = [value for value in found if value is not None]
    assert known == sorted(known)
    assert len(known) == (len(found) if sum(counts) else 0)
