"""Trials from their begin to their end, with everything at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
import sqlalchemy as sa

from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2, monitoring_pb2
from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.consumer import on_drift
from everloop_registry_gateway.domain import Rollout, RolloutState, Strategy
from everloop_registry_gateway.observe import RolloutJudge
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event, new_event
from everloop_runtime.service import Stopper

CANARY = {"strategy": "canary", "bake": "10m", "min_requests": 100}


@pytest.fixture
def tried(world):
    """A world whose version 1 serves, and whose version 2 is on trial by its pipeline's will."""
    world.register(1)
    world.use(rollout=CANARY)
    world.register(2)
    return world


@pytest.fixture
def manual(world):
    """A world whose version 1 serves, and whose versions 2 and 3 wait for a person."""
    world.register(1)
    world.use(rollout=CANARY, approval="manual")
    world.register(2)
    world.register(3)
    return world


def refusal(action: Callable[[], object]) -> tuple[Kind, str]:
    with pytest.raises(EverloopError) as caught:
        action()
    return caught.value.kind, caught.value.reason


def trials(world) -> list[tuple[int, int]]:
    """Version in Production and version on trial, as a replica sees them."""
    with world.database.read() as connection:
        serving, candidates = RolloutStore(connection).served("late")
    return [
        (version.version, candidate.version)
        for version, (candidate, _) in zip(serving, candidates, strict=False)
    ]


# How it begins


def test_a_version_that_passed_its_gates_stands_trial_beside_the_one_in_production(tried):
    rollout = tried.rollout()
    assert (rollout.candidate_version, rollout.baseline_version) == (2, 1)
    assert (rollout.state, rollout.reason, rollout.end_time) == ("running", "", None)
    assert (rollout.plan.strategy, rollout.plan.bake) == (Strategy.CANARY, timedelta(minutes=10))
    assert tried.stages() == {1: "production", 2: "staging"}
    assert tried.aliases() == {"production": 1, "staging": 2}
    assert trials(tried) == [(1, 2)]
    assert tried.announced()[2:] == [("ModelRegistered", 2), ("RolloutStarted", 2)]
    assert tried.trail()[3:] == [(2, "registered"), (2, "staged"), (2, "rollout_started")]
    started = tried.events()[-1]
    assert (started.id, started.cause) == (rollout.id, "event-2")
    assert started.data.rollout.plan.percent == 10
    assert started.data.rollout.plan.bake.seconds == 600


def test_a_replayed_registration_starts_no_second_trial(tried):
    before = tried.announced(), tried.trail(), tried.etag()
    tried.register(2, baseline_version=1)
    assert (tried.announced(), tried.trail(), tried.etag()) == before


def test_the_first_model_is_promoted_at_once_though_a_trial_is_declared(world):
    world.use(rollout=CANARY)
    world.register(1)
    assert world.stages() == {1: "production"}
    assert world.all_rollouts() == []


def test_a_rejected_model_stands_no_trial(tried):
    tried.register(3, metrics={"roc_auc": 0.1})
    assert tried.rollout().candidate_version == 2
    assert tried.stages()[3] == "rejected"


def test_with_manual_approval_a_version_waits_until_a_person_starts_its_trial(manual):
    assert manual.all_rollouts() == []
    rollout = manual.try_out(3, request_id="r")
    assert (rollout.candidate_version, rollout.plan.min_requests) == (3, 100)
    assert manual.stages() == {1: "production", 2: "staging", 3: "staging"}
    assert manual.trail()[-1] == (3, "rollout_started")
    assert manual.events()[-1].cause == "r"


def test_without_a_declaration_a_trial_is_a_canary_of_ten_percent(world):
    world.register(1)
    world.use(approval="manual")
    world.register(2)
    plan = world.try_out(2).plan
    assert (plan.strategy, plan.percent, plan.min_requests) == (Strategy.CANARY, 10.0, 1000)


def test_a_person_may_say_how(manual):
    declared = manual.pipeline.promotion.rollout
    plan = replace(trial.declared(declared), strategy=Strategy.SHADOW, percent=50.0, key="x")
    assert manual.try_out(2, plan=plan).plan == plan
    assert manual.rollout().plan == plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("percent", 0.0),
        ("percent", 101.0),
        ("percent", float("nan")),
        ("bake", timedelta(seconds=-1)),
        ("min_requests", 0),
        ("max_error_rate", 1.1),
        ("max_latency_ratio", 0.5),
        ("max_latency_ratio", float("inf")),
        ("key", "nothing"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_with_its_field(manual, field, value):
    plan = replace(trial.declared(manual.pipeline.promotion.rollout), **{field: value})
    with pytest.raises(EverloopError) as caught:
        manual.try_out(2, plan=plan)
    assert (caught.value.kind, caught.value.metadata) == (Kind.INVALID, {"field": f"plan.{field}"})


def test_a_repeated_start_returns_the_first_answer(manual):
    first = manual.try_out(2, request_id="r")
    manual.report(50, 1)
    manual.end(first, promote=False)
    assert manual.try_out(2, request_id="r") == first
    assert len(manual.all_rollouts()) == 1
    assert refusal(lambda: manual.try_out(3, request_id="r")) == (
        Kind.INVALID,
        "REQUEST_ID_REUSED",
    )


def test_a_repeated_start_with_another_plan_is_refused(manual):
    plan = trial.declared(manual.pipeline.promotion.rollout)
    first = manual.try_out(2, request_id="r", plan=plan)
    assert manual.try_out(2, request_id="r", plan=plan) == first
    for other in (replace(plan, percent=50.0), replace(plan, bake=timedelta(hours=1)), None):
        assert refusal(partial(manual.try_out, 2, request_id="r", plan=other)) == (
            Kind.INVALID,
            "REQUEST_ID_REUSED",
        )


def test_what_cannot_be_tried(manual):
    assert refusal(lambda: manual.try_out(9)) == (Kind.NOT_FOUND, "VERSION_NOT_FOUND")
    assert refusal(lambda: manual.try_out(1)) == (Kind.PRECONDITION, "NOT_IN_STAGING")
    manual.register(4, metrics={"roc_auc": 0.1})
    assert refusal(lambda: manual.try_out(4)) == (Kind.PRECONDITION, "GATES_NOT_PASSED")
    manual.try_out(3)
    running = (Kind.PRECONDITION, "ROLLOUT_RUNNING")
    assert refusal(lambda: manual.try_out(2)) == refusal(lambda: manual.try_out(3)) == running


def test_without_production_there_is_nothing_to_be_tried_beside(world):
    world.use(approval="manual")
    world.register(1)
    assert refusal(lambda: world.try_out(1)) == (Kind.PRECONDITION, "NOTHING_IN_PRODUCTION")


# How it ends


def test_a_candidate_that_baked_is_promoted(tried):
    tried.report(200)
    tried.judge(minutes=9)
    assert tried.rollout().state == "running"
    tried.judge(minutes=1)

    assert tried.stages() == {1: "archived", 2: "production"}
    assert tried.aliases() == {"production": 2}
    rollout = tried.rollout()
    assert rollout.state == "promoted"
    assert rollout.reason.startswith("baked for 0:10:0")
    assert "0 of 200 requests failed" in rollout.reason
    assert rollout.end_time is not None
    assert rollout.candidate.requests == 200
    assert trials(tried) == []
    names = tried.announced()[4:]
    assert sorted(names) == [("ModelPromoted", 2), ("RolloutEnded", 2)]
    assert {event.cause for event in tried.events()[4:]} == {rollout.id}
    assert tried.trail()[-2:] == [(1, "archived"), (2, "promoted")]
    gate = tried.gate(2)
    assert (gate.passed, gate.evidence["requests"], gate.evidence["baseline_requests"]) == (
        True,
        200,
        5000,
    )
    assert tried.registry.tags("late", 2)["everloop.gate.4.rollout"].startswith("passed: baked")


def test_after_an_outage_the_totals_of_the_past_promote_nothing(tried):
    """The gateway is away while the candidate bakes and breaks; the judge is back before the replicas are heard."""
    tried.report(200, replica="a")
    tried.report(200, replica="b")
    tried.later += timedelta(minutes=10)
    tried.restart()
    tried.observer.judge()
    assert tried.rollout().state == "running"
    tried.report(300, replica="a", sequence=2)
    tried.observer.judge()
    assert tried.rollout().state == "running", "the other replica had no time to report"
    assert tried.report(300, 100, replica="b", sequence=2) == "aborted"


def test_what_ends_a_trial_is_what_replicas_report_now(tried):
    tried.report(200)
    tried.judge(minutes=1)
    tried.later += timedelta(minutes=10)
    tried.observer.judge()
    assert tried.rollout().state == "running", "nobody has reported for minutes"
    tried.repeat()
    tried.observer.judge()
    assert tried.rollout().state == "promoted"


def test_a_replica_that_is_gone_for_good_holds_nothing_up_and_its_totals_count(tried):
    tried.report(80, replica="gone")
    tried.report(80, replica="there")
    gone = tried.heard.pop((tried.rollout().id, "gone"))
    tried.restart()
    tried.judge(minutes=10)
    rollout = tried.rollout()
    assert (rollout.state, rollout.candidate.requests) == ("promoted", 80 + gone.candidate.requests)


def test_a_candidate_nobody_asked_keeps_waiting(tried):
    tried.judge(days=30)
    assert tried.rollout().state == "running"


def test_a_candidate_that_fails_too_often_is_aborted_at_once(tried):
    assert tried.report(3, 1) == "running"
    assert tried.report(8, 4, sequence=2) == "aborted"

    assert tried.stages() == {1: "production", 2: "rejected"}
    rollout = tried.rollout()
    assert rollout.reason == "errors: 4 of 8 requests failed (50.00%), 1.00% may"
    assert tried.trail()[-1] == (2, "rollout_aborted")
    ended = tried.events()[-1].data.rollout
    assert (ended.state, ended.reason, ended.candidate.errors) == (3, rollout.reason, 4)
    gate = tried.gate(2)
    assert (gate.passed, gate.message, gate.evidence["errors"]) == (False, rollout.reason, 4)
    assert refusal(lambda: tried.promote(2)) == (Kind.PRECONDITION, "GATES_NOT_PASSED")
    assert trials(tried) == []
    tried.reconcile()
    assert tried.aliases() == {"production": 1}
    assert tried.registry.tags("late", 2)["everloop.gate.4.rollout"].startswith("refused: errors")


def test_a_candidate_that_is_too_slow_is_aborted_by_the_judge(tried):
    assert tried.report(99, millis=50) == "running"
    tried.judge()
    assert tried.rollout().state == "running"
    assert tried.report(100, millis=50, sequence=2) == "running"
    tried.judge()
    assert tried.rollout().state == "aborted"
    assert tried.rollout().reason.startswith("latency: p99 ")
    assert tried.gate(2).evidence["p99"] > 0.04


def test_a_replica_that_cannot_serve_the_candidate_aborts(tried):
    assert tried.report(0, failure="SHA-256 does not match") == "aborted"
    assert tried.rollout().reason == ("failure: replica r cannot serve it: SHA-256 does not match")
    assert tried.stages()[2] == "rejected"


def test_of_a_long_failure_its_beginning_is_kept(tried):
    tried.report(0, failure="x" * 100_000)
    assert len(tried.rollout().reason) < 600


def test_an_aborted_trial_does_not_need_mlflow(tried):
    tried.registry.reachable = False
    assert tried.report(0, failure="no artifact") == "aborted"
    assert trials(tried) == []


def drifted(version: int, *, estimated: float = 0.8, realised: float = 0.8) -> Event:
    def measured(value: float) -> monitoring_pb2.Measurement:
        return monitoring_pb2.Measurement(
            measure="roc_auc", value=value, lower=0.6, alert=value < 0.6
        )

    chunk = monitoring_pb2.Chunk(
        id=f"late/{version}/0",
        pipeline="late",
        model_version=version,
        alert=True,
        estimated_performance=measured(estimated),
        realised_performance=measured(realised),
    )
    return new_event(
        "monitor", "late", events_pb2.DriftDetected(chunk=chunk), id=f"drift-{version}-{realised}"
    )


@pytest.mark.parametrize(
    ("bad", "told"),
    [({"estimated": 0.5}, "estimated roc_auc 0.5 < 0.6"), ({"realised": 0.55}, "realised roc_auc")],
)
def test_a_bad_performance_aborts_once(tried, bad, told):
    handle = on_drift(tried.observer)
    for _ in range(2):
        handle(drifted(2, **bad))
    assert tried.rollout().state == "aborted"
    assert tried.rollout().reason.startswith(f"performance: {told}")
    assert tried.events()[-1].cause.startswith("drift-2")
    assert tried.announced().count(("RolloutEnded", 2)) == 1


def test_what_the_monitor_says_of_others_and_drift_alone_do_not_abort(tried):
    handle = on_drift(tried.observer)
    handle(drifted(1, realised=0.1))
    handle(drifted(2))
    handle(new_event("monitor", "late", events_pb2.RetrainRequested(pipeline="late")))
    assert tried.rollout().state == "running"


def test_a_plan_may_be_deaf_to_performance(world):
    world.register(1)
    world.use(rollout=CANARY | {"abort": {"performance": False}})
    world.register(2)
    on_drift(world.observer)(drifted(2, realised=0.1))
    assert world.rollout().state == "running"


def test_a_newer_candidate_supersedes_the_one_on_trial(tried):
    old = tried.rollout()
    tried.register(3)
    new, ended = tried.all_rollouts()
    assert (ended.id, ended.state, ended.reason) == (
        old.id,
        "aborted",
        "superseded by version 3",
    )
    assert (new.candidate_version, new.baseline_version, new.state) == (3, 1, "running")
    assert tried.stages() == {1: "production", 2: "rejected", 3: "staging"}
    assert tried.announced()[-3:] == [
        ("ModelRegistered", 3),
        ("RolloutEnded", 2),
        ("RolloutStarted", 3),
    ]
    assert trials(tried) == [(1, 3)]


def test_a_person_may_supersede_by_a_newer_version(manual):
    manual.try_out(2)
    manual.try_out(3)
    assert [rollout.state for rollout in manual.all_rollouts()] == ["running", "aborted"]
    assert manual.stages() == {1: "production", 2: "rejected", 3: "staging"}


def test_a_promotion_by_hand_of_another_version_ends_the_trial(manual):
    manual.try_out(3)
    manual.promote(2)
    assert manual.rollout().state == "aborted"
    assert manual.rollout().reason == "version 2 was promoted by ada: it is better"
    assert manual.stages() == {1: "archived", 2: "production", 3: "rejected"}


def test_a_rollback_ends_the_trial(world):
    world.register(1)
    world.register(2)
    world.use(rollout=CANARY)
    world.register(3)
    world.rollback()
    assert world.rollout().state == "aborted"
    assert world.rollout().reason == "version 1 was rolled back by ada: it is worse"
    assert world.stages() == {1: "production", 2: "archived", 3: "rejected"}
    assert trials(world) == []


def test_a_promotion_by_hand_of_the_candidate_ends_its_trial_well(tried):
    tried.report(5)
    tried.promote(2, request_id="r")
    assert tried.rollout().state == "promoted"
    assert tried.rollout().reason == "version 2 was promoted by ada: it is better"
    assert tried.production() == 2


def test_promoting_what_serves_leaves_the_trial_alone(tried):
    tried.promote(1)
    assert tried.rollout().state == "running"


def test_a_pipeline_that_no_longer_tries_ends_the_trial_with_its_next_promotion(tried):
    tried.use()
    tried.register(3)
    assert tried.stages() == {1: "archived", 2: "rejected", 3: "production"}
    assert tried.rollout().reason.startswith("version 3 was promoted: 3 of 3 gates passed")


def test_an_a_b_test_runs_until_a_person_decides(world):
    world.register(1)
    world.use(rollout=CANARY | {"strategy": "ab"})
    world.register(2)
    world.report(10_000)
    world.judge(days=3)
    assert world.rollout().state == "running"
    ended = world.end(world.rollout(), promote=True, request_id="r")
    assert (ended.state, ended.reason) == ("promoted", "version 2 was promoted by ada: enough")
    assert world.production() == 2


def test_a_person_may_abort_while_mlflow_is_away(tried):
    tried.registry.reachable = False
    ended = tried.end(tried.rollout(), promote=False, request_id="r")
    assert (ended.state, ended.reason) == ("aborted", "aborted by ada: enough")
    assert tried.stages()[2] == "rejected"


@pytest.mark.parametrize("promote", [True, False])
def test_ending_is_idempotent_by_request_and_by_nature(tried, promote):
    rollout = tried.rollout()
    first = tried.end(rollout, promote=promote, request_id="r")
    before = tried.etag(), tried.trail(), tried.announced()
    assert tried.end(rollout, promote=promote, request_id="r") == first
    assert tried.end(rollout, promote=promote, request_id="another") == first
    assert tried.end(rollout, promote=promote) == first
    assert (tried.etag(), tried.trail(), tried.announced()) == before
    assert refusal(lambda: tried.end(rollout, promote=not promote)) == (
        Kind.PRECONDITION,
        "ROLLOUT_ENDED",
    )
    assert refusal(lambda: tried.end(rollout, promote=not promote, request_id="r")) == (
        Kind.INVALID,
        "REQUEST_ID_REUSED",
    )


def test_what_is_not_there_cannot_end(tried):
    unknown = replace(tried.rollout(), id="nothing")
    assert refusal(lambda: tried.end(unknown, promote=True)) == (
        Kind.NOT_FOUND,
        "ROLLOUT_NOT_FOUND",
    )
    assert refusal(lambda: tried.report(1, rollout=unknown)) == (
        Kind.NOT_FOUND,
        "ROLLOUT_NOT_FOUND",
    )


def test_a_promotion_by_hand_without_mlflow_is_unavailable_and_leaves_nothing(tried):
    before = tried.etag(), tried.trail(), tried.announced()
    tried.registry.reachable = False
    assert refusal(lambda: tried.end(tried.rollout(), promote=True, request_id="r"))[0] == (
        Kind.UNAVAILABLE
    )
    assert (tried.etag(), tried.trail(), tried.announced()) == before
    tried.registry.reachable = True
    assert tried.end(tried.rollout(), promote=True, request_id="r").state == "promoted"


def test_while_mlflow_is_away_nothing_is_promoted_and_a_failure_still_aborts(tried):
    tried.report(200)
    tried.registry.reachable = False
    tried.judge(minutes=10)
    assert tried.rollout().state == "running"
    assert tried.report(300, 100, sequence=2) == "aborted"


def test_a_candidate_deleted_in_mlflow_is_aborted_when_it_should_be_promoted(tried):
    tried.report(200)
    del tried.registry.models["late"].versions[2]
    tried.judge(minutes=10)
    assert tried.rollout().state == "aborted"
    assert "no version 2" in tried.rollout().reason
    assert tried.stages() == {1: "production", 2: "rejected"}
    tried.judge()
    assert tried.announced().count(("RolloutEnded", 2)) == 1


# What replicas report


def test_totals_are_added_over_replicas_and_replaced_within_one(tried):
    tried.report(10, baseline=100, replica="a")
    tried.report(20, baseline=200, replica="b", sequence=7)
    tried.report(15, baseline=150, replica="a", sequence=2)
    rollout = tried.rollout()
    assert (rollout.candidate.requests, rollout.baseline.requests) == (35, 350)
    assert sum(rollout.candidate.latency_counts) == 35


def test_repeats_and_late_reports_change_nothing(tried):
    tried.report(20, sequence=5)
    for sequence in (5, 4, 0):
        assert tried.report(99, 99, sequence=sequence, failure="long ago") == "running"
    assert tried.rollout().candidate.requests == 20


def test_what_comes_after_the_end_changes_nothing(tried):
    rollout = tried.rollout()
    tried.report(20)
    ended = tried.end(rollout, promote=False)
    assert tried.report(99, rollout=rollout, sequence=2, replica="new") == "aborted"
    assert tried.rollout() == ended
    assert ended.candidate.requests == 20


def test_an_ended_rollout_keeps_no_more_than_the_sums(tried):
    for replica in "abc":
        tried.report(10, replica=replica)
    tried.end(tried.rollout(), promote=False)
    with tried.database.read() as connection:
        left = connection.scalar(sa.text("SELECT count(*) FROM rollout_reports"))
    assert left == 0
    assert tried.rollout().candidate.requests == 30


def test_replicas_are_counted_up_to_a_bound_and_a_failure_is_heard_beyond_it(tried):
    for replica in "abc":
        tried.report(10, replica=replica)
    assert refusal(lambda: tried.report(10, replica="d")) == (Kind.EXHAUSTED, "TOO_MANY_REPLICAS")
    assert tried.report(11, replica="a", sequence=2) == "running"
    assert tried.report(0, replica="d", failure="broken") == "aborted"


def test_the_database_keeps_a_second_trial_out(tried):
    second = replace(tried.rollout(), id="another", candidate_version=1)
    with (
        pytest.raises(sa.exc.IntegrityError),
        tried.database.unit_of_work() as work,
    ):
        RolloutStore(work.connection).add(second)


def test_the_judge_runs_by_itself_and_outlives_an_outage(tried):
    tried.report(200)
    tried.later = timedelta(minutes=10)
    tried.repeat()
    tried.registry.reachable = False
    stopper, judge = Stopper(), RolloutJudge(tried.observer, 0.01)
    judge.start(stopper)
    stopper.wait(0.1)
    assert tried.rollout().state == "running"
    tried.registry.reachable = True
    for _ in range(1000):
        if tried.rollout().state == RolloutState.PROMOTED:
            break
        stopper.wait(0.01)
    stopper.stop()
    judge.stop()
    assert tried.rollout().state == RolloutState.PROMOTED
    assert not stopper.failed


def test_pages_cover_every_rollout_once_newest_first(tried):
    for number in (3, 4, 5):
        tried.register(number)
    seen: list[Rollout] = []
    token: str | None = ""
    with tried.database.read() as connection:
        while token is not None:
            found, following = RolloutStore(connection).page(
                "late", int(token) if token else None, 2
            )
            seen += found
            token = following or None
    assert [rollout.candidate_version for rollout in seen] == [5, 4, 3, 2]


def test_metrics_count_rollouts_and_what_ended_them(tried):
    from prometheus_client import REGISTRY, CollectorRegistry

    from everloop_registry_gateway.metrics import RolloutsByState

    name = "everloop_registry_rollout_decisions_total"
    labels = {"model": "late", "outcome": "aborted", "cause": "superseded"}
    before = REGISTRY.get_sample_value(name, labels) or 0.0
    tried.register(3)
    assert REGISTRY.get_sample_value(name, labels) == before + 1

    def count() -> dict[tuple[str, str], int]:
        with tried.database.read() as connection:
            return RolloutStore(connection).count_by_state()

    registry = CollectorRegistry()
    registry.register(RolloutsByState(count))
    for state in ("running", "aborted"):
        at = {"model": "late", "state": state}
        assert registry.get_sample_value("everloop_registry_rollouts", at) == 1
