"""The retrain policy."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Monitoring, PerformanceRule, QuietHours, Retrain
from everloop_monitor.decide import decide, judge_request
from everloop_monitor.domain import Chunk, Measurement, Report, Request

NOW = datetime(2013, 5, 1, tzinfo=UTC)
RULE = Retrain(
    when=("realised_performance",),
    chunks=2,
    of=3,
    cooldown=timedelta(hours=1),
    answer_within=timedelta(hours=1),
)


def chunk(index, alert=None, version=1, drift=False, severity=None):
    realised = (
        None if alert is None else Measurement("roc_auc", 0.6 if alert else 0.7, 0.65, None, alert)
    )
    if severity is None:
        severity = 1.5 if alert else 0.5
    report = Report(
        (),
        1.0 if drift else 0.0,
        drift,
        realised=realised,
        severities={"realised_performance": severity},
    )
    return Chunk(index, "trips", version, index, index * 100, 100, f"event-{index}", report=report)


def ask(
    chunks, *, rule=RULE, production=1, last=None, history=(), made=(), now=NOW, metric="roc_auc"
):
    watched = Monitoring(retrain=rule, performance=PerformanceRule(metric=metric, max_loss=0.03))
    recent = {c: [item for item in chunks if item.verdict(c) is not None] for c in rule.when}
    history = [last, *history] if last else list(history)
    return decide(
        watched,
        chunks[-1],
        recent,
        production=production,
        history=history,
        made=made,
        now=now,
    )


def ruled(**changes):
    return Retrain.model_validate({**RULE.model_dump(), **changes})


BAD = [chunk(0, True), chunk(1, True)]


@pytest.mark.parametrize(
    ("alerts", "action"),
    [
        ([True], "wait"),
        ([False, True], "wait"),
        ([True, True], "retrain"),
        ([True, False, True], "retrain"),
        ([True, False, False, True], "wait"),
        ([True, None, None, True], "wait"),
        ([None, None], "wait"),
    ],
)
def test_n_of_m_consecutive_chunks(alerts, action):
    assert ask([chunk(n, alert) for n, alert in enumerate(alerts)]).action == action


def test_a_version_that_no_longer_serves_asks_for_nothing():
    decision = ask([chunk(0, True), chunk(1, True)], production=2)
    assert decision.action == "wait"
    assert "version 1 is not in Production (version 2 is)" in decision.reason


def test_the_reason_holds_the_numbers():
    decision = ask([chunk(0, True), chunk(1, False), chunk(2, True)])
    assert decision.reason == (
        "realised_performance: 2 of the last 3 chunks alert, 2 needed "
        "(chunk 0: roc_auc 0.6000 < 0.6500; chunk 2: roc_auc 0.6000 < 0.6500)"
    )


def test_drift_alone_does_not_retrain_unless_the_pipeline_says_so():
    chunks = [chunk(n, False, drift=True) for n in range(3)]
    assert ask(chunks).action == "wait"
    rule = RULE.model_copy(update={"when": ("realised_performance", "drift")})
    assert ask(chunks, rule=rule).action == "retrain"


def request(version, made_at, id="earlier", **changes):
    return Request(id, "trips", version, "trips/1/0", "", made_at, **changes)


@pytest.mark.parametrize(
    ("last", "action"),
    [
        (request(2, NOW - timedelta(minutes=59)), "already_requested"),  # still open
        (request(1, NOW - timedelta(minutes=59)), "cooldown"),  # version 2 serves by now
        (request(2, NOW - timedelta(minutes=59), outcome="failed"), "cooldown"),
        (request(2, NOW - timedelta(minutes=60)), "retrain"),
    ],
)
def test_one_open_request_and_a_cooldown(last, action):
    chunks = [chunk(n, True, version=2) for n in range(2)]
    assert ask(chunks, production=2, last=last).action == action


def test_the_same_window_is_asked_for_once_even_after_the_cooldown():
    chunks = [chunk(0, True), chunk(1, True)]
    first = ask(chunks)
    later = ask(
        chunks,
        last=request(1, NOW, first.request_id),
        made={first.request_id},
        now=NOW + timedelta(days=1),
    )
    assert (first.action, later.action) == ("retrain", "already_requested")


def test_a_window_that_was_asked_for_does_not_hide_another_condition():
    rule = RULE.model_copy(update={"when": ("drift", "realised_performance")})
    chunks = [chunk(0, True, drift=True), chunk(1, True, drift=True)]
    first = ask(chunks, rule=rule)
    later = ask(chunks, rule=rule, made={first.request_id})
    assert first.reason.startswith("drift: ")
    assert later.action == "retrain"
    assert later.reason.startswith("realised_performance: ")
    assert ask(chunks, rule=rule, made={first.request_id, later.request_id}).action == (
        "already_requested"
    )


HISTORIES = st.lists(
    st.tuples(st.booleans(), st.integers(0, 50), st.sampled_from([1, 1, 1, 2])), max_size=40
)


def play(history, rule):
    """Runs a history of (alert, minutes passed, version in Production); returns requests in order."""
    now = NOW
    chunks: list[Chunk] = []
    requests: list[Request] = []
    for index, (alert, minutes, production) in enumerate(history):
        now += timedelta(minutes=minutes)
        chunks.append(chunk(index, alert))
        decision = ask(
            chunks[-rule.of :],
            rule=rule,
            production=production,
            history=requests[::-1],
            made={r.id for r in requests},
            now=now,
        )
        if decision.action == "retrain":
            requests.append(request(1, now, decision.request_id))
            assert production == 1
            assert (
                sum(c.verdict("realised_performance") or False for c in chunks[-rule.of :])
                >= rule.chunks
            )
    return requests


@given(history=HISTORIES, n=st.integers(1, 3), m=st.integers(3, 5), hours=st.integers(1, 3))
def test_never_two_requests_inside_a_cooldown_and_a_replay_asks_the_same(history, n, m, hours):
    rule = ruled(chunks=n, of=m, cooldown=timedelta(hours=hours))
    requests = play(history, rule)
    times = [r.made_at for r in requests]
    assert all(b - a >= rule.cooldown for a, b in itertools.pairwise(times))
    assert len({r.id for r in requests}) == len(requests)
    assert play(history, rule) == requests


def test_a_request_is_open_until_it_is_answered_or_too_old():
    rule = ruled(answer_within="6h")
    asked = request(1, NOW - timedelta(hours=5))
    assert ask(BAD, rule=rule, last=asked).action == "already_requested"
    for outcome in ("rejected", "failed"):
        answered = replace(asked, outcome=outcome)
        assert ask(BAD, rule=rule, last=answered).action == "retrain"
    assert ask(BAD, rule=rule, last=request(1, NOW - timedelta(hours=6))).action == "retrain"


@pytest.mark.parametrize(("vain", "hours"), [(0, 1), (1, 2), (3, 8), (5, 32), (9, 32)])
def test_requests_that_did_not_help_back_off(vain, hours):
    def history(age):
        return [
            *[request(1, NOW - age, outcome="promoted", helped=False)] * vain,
            request(1, NOW - age, outcome="promoted", helped=True),
            request(1, NOW - age, outcome="rejected"),
        ]

    just, not_yet = timedelta(hours=hours), timedelta(hours=hours, minutes=-1)
    assert ask(BAD, history=history(just)).action in ("retrain", "over_budget")
    held = ask(BAD, history=history(not_yet))
    assert held.action == "cooldown"
    assert (f"for {vain} in a row did not help" in held.reason) is bool(vain)


def test_a_budget_of_requests_in_any_24_hours():
    rule = ruled(per_day=2)
    ages = [2, 23, 25]
    history = [request(1, NOW - timedelta(hours=age), outcome="promoted") for age in ages]
    found = ask(BAD, rule=rule, history=history)
    assert (found.action, "2 of 2 requests" in found.reason) == ("over_budget", True)
    assert ask(BAD, rule=rule, history=history[:1]).action == "retrain"


def test_quiet_hours_are_kept_unless_it_is_urgent():
    quiet = {"start": "22:00", "end": "06:00", "timezone": "UTC"}  # now is midnight
    rule = ruled(quiet_hours=quiet, urgent=3.0)
    assert ask(BAD, rule=rule).action == "quiet_hours"
    assert ask(BAD, rule=rule, now=NOW + timedelta(hours=6)).action == "retrain"
    worse = [chunk(0, False), chunk(1, True, severity=3.0)]
    urgent = ask(worse, rule=rule)
    assert (urgent.action, urgent.severity) == ("retrain", 3.0)
    assert "1 needed as it is urgent" in urgent.reason


@given(st.times(), st.times(), st.datetimes(timezones=st.just(UTC)))
def test_quiet_hours_and_the_rest_of_the_day_are_the_day(start, end, moment):
    quiet = QuietHours(start=f"{start:%H:%M}", end=f"{end:%H:%M}")
    loud = QuietHours(start=quiet.end, end=quiet.start)
    if quiet.start != quiet.end:
        assert quiet.hold(moment) is not loud.hold(moment)


def test_a_loss_in_money_must_be_worth_it():
    """Two chunks of 100 rows lose 1.5 times the tolerated 0.03 a row: 9 altogether."""
    for least, action in ((9.1, "wait"), (8.9, "retrain")):
        found = ask(BAD, rule=ruled(min_cost=least), metric="cost")
        assert found.action == action
        assert f"cost 9 more than the reference sample's, {least:.6g} needed" in found.reason


def test_every_decision_holds_its_evidence():
    found = ask([chunk(0, True), chunk(1, False)])
    assert [(e.chunk_id, e.alert, e.severity) for e in found.evidence] == [
        ("trips/1/0", True, 1.5),
        ("trips/1/1", False, 0.5),
    ]
    assert found.evidence[0].shown == "roc_auc 0.6000 < 0.6500"
    asked = ask(BAD)
    assert (asked.condition, asked.severity, asked.badness) == ("realised_performance", 1.5, -0.6)


def test_drift_that_does_not_hurt_is_said_to_only_alert():
    found = ask([chunk(0, False, drift=True)])
    assert found.reason.endswith("; drift alerts, and asks for no new model here")


@pytest.mark.parametrize(("alert", "action"), [(False, "helped"), (True, "did_not_help")])
def test_a_new_version_is_judged_by_as_many_chunks_as_asked_for_it(alert, action):
    asked = request(
        1, NOW, condition="realised_performance", badness=-0.6, outcome="promoted", answer=2
    )
    seen = [chunk(n, alert, version=2) for n in range(3)]
    assert judge_request(RULE, asked, seen[:1]) is None
    judged = judge_request(RULE, asked, seen)
    assert judged is not None
    assert (judged.action, judged.request_id, len(judged.evidence)) == (action, "earlier", 2)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["open", "rejected", "failed"]))),
    st.integers(1, 5),
    st.integers(0, 40),
)
def test_whatever_happened_the_limits_hold(past, per_day, severity):
    """No request inside a cooldown, beyond the budget or beside an open one."""
    rule = ruled(per_day=per_day, answer_within="6h", urgent=2.0)
    ages = sorted(past)
    history = [request(1, NOW - timedelta(hours=age), outcome=out) for age, out in ages]
    found = ask([chunk(0, True, severity=float(severity))], rule=rule, history=history)
    if found.action == "retrain":
        assert severity >= 2
        assert sum(age < 24 for age, _ in ages) < per_day
        if ages:
            age, outcome = ages[0]
            assert age >= 1
            assert outcome != "open" or age >= 6
    assert found.reason
