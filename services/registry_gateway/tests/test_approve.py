"""Approval by a person: what waits in Staging goes its way, is rejected, or is put away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from everloop_registry_gateway.domain import Act
from everloop_runtime.errors import EverloopError, Kind


@pytest.fixture
def manual(world):
    """One version in Production, one that waits."""
    world.register(1)
    world.use(approval="manual")
    world.register(2)
    assert world.stages() == {1: "production", 2: "staging"}
    return world


def refusal(action) -> EverloopError:
    with pytest.raises(EverloopError) as caught:
        action()
    return caught.value


def test_an_approved_version_serves_and_the_trail_says_who_let_it(manual):
    answer = manual.rule(Act.APPROVE, 2, request_id="r", etag=manual.etag())
    assert answer.stage == "production"
    assert manual.aliases() == {"production": 2}
    assert manual.trail()[-3:] == [(2, "approved"), (1, "archived"), (2, "promoted")]
    approved, _, promoted = manual.entries()[-3:]
    assert (approved.actor, approved.reason, approved.cause_id) == ("ada", "reviewed", "r")
    assert (promoted.actor, promoted.reason) == ("ada", "approved by ada: reviewed")
    verdict = promoted.evidence[-1]
    assert (verdict.gate, verdict.passed) == ("approval", True)
    assert manual.announced()[-1] == ("ModelPromoted", 2)
    assert manual.events()[-1].cause == "r"
    assert manual.registry.tags("late", 2)["everloop.gate.4.approval"].startswith("passed")


def test_an_approved_version_is_tried_where_its_pipeline_says_so(manual):
    manual.use(approval="manual", rollout={"strategy": "canary"})
    answer = manual.rule(Act.APPROVE, 2)
    assert answer.stage == "staging"
    assert (manual.rollout().candidate_version, manual.rollout().state) == (2, "running")
    assert manual.trail()[-2:] == [(2, "approved"), (2, "rollout_started")]
    for act in Act:
        error = refusal(lambda act=act: manual.rule(act, 2))
        assert (error.kind, error.reason) == (Kind.PRECONDITION, "ON_TRIAL")


def test_a_rejected_version_cannot_be_promoted_any_more(manual):
    answer = manual.rule(Act.REJECT, 2)
    assert answer.stage == "rejected"
    assert manual.aliases() == {"production": 1}
    assert manual.trail()[-1] == (2, "rejected")
    error = refusal(lambda: manual.promote(2))
    assert (error.kind, error.reason) == (Kind.PRECONDITION, "GATES_NOT_PASSED")
    assert "approval: rejected by ada: reviewed" in error.message
    assert manual.registry.tags("late", 2)["everloop.stage"] == "rejected"


def test_an_archived_version_is_out_of_the_way_and_can_come_back(manual):
    assert manual.rule(Act.ARCHIVE, 2).stage == "archived"
    assert manual.aliases() == {"production": 1}
    assert manual.trail()[-1] == (2, "archived")
    assert manual.promote(2).stage == "production"


@pytest.mark.parametrize("act", list(Act))
@pytest.mark.parametrize("number", [1, 3], ids=["serves", "refused by its gates"])
def test_only_what_waits_is_ruled_on(manual, act, number):
    manual.register(3, metrics={"roc_auc": 0.1})
    before = manual.etag(), manual.trail()
    error = refusal(lambda: manual.rule(act, number))
    assert (error.kind, error.reason) == (Kind.PRECONDITION, "NOT_IN_STAGING")
    assert (manual.etag(), manual.trail()) == before


@pytest.mark.parametrize("act", list(Act))
def test_a_repeat_changes_nothing_and_its_id_belongs_to_it(manual, act):
    manual.register(3)
    first = manual.rule(act, 2, request_id="r", etag=manual.etag())
    before = manual.etag(), manual.trail(), manual.announced()
    assert manual.rule(act, 2, request_id="r", etag="long past") == first
    assert (manual.etag(), manual.trail(), manual.announced()) == before
    other = Act.REJECT if act is Act.APPROVE else Act.APPROVE
    for wrong in (
        lambda: manual.rule(other, 2, request_id="r"),
        lambda: manual.rule(act, 3, request_id="r"),
    ):
        assert refusal(wrong).reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("act", list(Act))
def test_a_stale_etag_is_a_conflict(manual, act):
    seen = manual.etag()
    manual.register(3)
    error = refusal(lambda: manual.rule(act, 2, etag=seen))
    assert (error.kind, error.reason) == (Kind.CONFLICT, "ETAG_MISMATCH")
    assert manual.stages()[2] == "staging"


@pytest.mark.parametrize("act", list(Act))
def test_without_mlflow_a_ruling_is_unavailable_and_leaves_nothing(manual, act):
    before = manual.etag(), manual.trail(), manual.announced()
    manual.registry.reachable = False
    assert refusal(lambda: manual.rule(act, 2, request_id="r")).kind is Kind.UNAVAILABLE
    assert (manual.etag(), manual.trail(), manual.announced()) == before
    manual.registry.reachable = True
    assert manual.rule(act, 2, request_id="r").stage != "staging"


def test_what_was_deleted_in_mlflow_is_not_approved_but_can_be_rejected(manual):
    del manual.registry.models["late"].versions[2]
    assert refusal(lambda: manual.rule(Act.APPROVE, 2)).kind is Kind.NOT_FOUND
    assert manual.rule(Act.REJECT, 2).stage == "rejected"


def test_of_many_who_approve_and_reject_with_one_etag_one_wins(manual):
    seen = manual.etag()

    def one(number: int) -> str:
        act = Act.APPROVE if number % 2 else Act.REJECT
        try:
            manual.rule(act, 2, etag=seen, request_id=f"r{number}")
            return "won"
        except EverloopError as error:
            return error.kind

    with ThreadPoolExecutor(20) as pool:
        outcomes = list(pool.map(one, range(20)))
    assert sorted(outcomes) == sorted(["won", *[Kind.CONFLICT] * 19])
    actions = [action for version, action in manual.trail() if version == 2]
    assert actions.count("approved") + actions.count("rejected") == 1
