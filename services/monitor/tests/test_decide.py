"""The retrain policy."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Retrain
from everloop_monitor.decide import decide
from everloop_monitor.domain import Chunk, Measurement, Report, Request

NOW = datetime(2013, 5, 1, tzinfo=UTC)
RULE = Retrain(when=("realised_performance",), chunks=2, of=3, cooldown=timedelta(hours=1))


def chunk(index, alert=None, version=1, drift=False):
    realised = (
        None if alert is None else Measurement("roc_auc", 0.6 if alert else 0.7, 0.65, None, alert)
    )
    report = Report((), 1.0 if drift else 0.0, drift, realised=realised)
    return Chunk(index, "trips", version, index, index * 100, 100, f"event-{index}", report=report)


def ask(chunks, *, rule=RULE, production=1, last=None, made=(), now=NOW):
    recent = {c: [item for item in chunks if item.verdict(c) is not None] for c in rule.when}
    return decide(rule, chunks[-1], recent, production=production, last=last, made=made, now=now)


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


def request(version, made_at, id="earlier"):
    return Request(id, "trips", version, "trips/1/0", "", made_at)


@pytest.mark.parametrize(
    ("last", "action"),
    [
        (request(2, NOW - timedelta(minutes=59)), "already_requested"),  # still open
        (request(1, NOW - timedelta(minutes=59)), "cooldown"),  # answered by version 2
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
            last=requests[-1] if requests else None,
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
    rule = Retrain(when=("realised_performance",), chunks=n, of=m, cooldown=timedelta(hours=hours))
    requests = play(history, rule)
    times = [r.made_at for r in requests]
    assert all(b - a >= rule.cooldown for a, b in itertools.pairwise(times))
    assert len({r.id for r in requests}) == len(requests)
    assert play(history, rule) == requests
