"""Registration, promotion and rollback, with everything at hand."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import sqlalchemy as sa

from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.reconcile import Reconciler
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Stopper


def test_the_first_model_that_passes_goes_to_production(world):
    world.register(1)

    assert world.stages() == {1: "production"}
    assert world.aliases() == {"production": 1}
    assert world.announced() == [("ModelRegistered", 1), ("ModelPromoted", 1)]
    assert world.trail() == [(1, "registered"), (1, "staged"), (1, "promoted")]
    assert world.registry.tags("late", 1)["everloop.stage"] == "production"


def test_events_carry_the_state_of_their_moment_and_the_cause(world):
    world.register(1)
    registered, promoted = world.events()

    assert registered.cause == promoted.cause == "event-1"
    assert registered.data.version.stage == 2  # STAGING
    assert [gate.gate for gate in registered.data.version.gates] == [
        "metric_floor",
        "better_than_production",
        "export_parity",
    ]
    assert promoted.data.version.stage == 3  # PRODUCTION
    assert promoted.data.version.HasField("promote_time")
    assert promoted.data.version.etag == world.etag()


def test_a_better_model_archives_the_one_before(world):
    world.register(1)
    world.register(2)

    assert world.stages() == {1: "archived", 2: "production"}
    assert world.aliases() == {"production": 2}
    promoted = world.events()[-1].data
    assert (promoted.version.version, promoted.previous_version, promoted.rollback) == (2, 1, False)
    assert (1, "archived") in world.trail()


def test_a_rejected_model_is_announced_with_its_evidence_and_changes_nothing_else(world):
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.64})

    assert world.stages() == {1: "production", 2: "rejected"}
    assert world.aliases() == {"production": 1}
    last = world.events()[-1]
    assert last.type.endswith("ModelRegistered")
    refused = [gate for gate in last.data.version.gates if not gate.passed]
    assert [gate.gate for gate in refused] == ["better_than_production"]
    assert refused[0].evidence["gain"] == pytest.approx(-0.01)
    assert world.registry.tags("late", 2)["everloop.gate.2.better_than_production"].startswith(
        "refused"
    )


def test_a_rejected_model_may_not_be_promoted_by_hand(world):
    world.register(1)
    world.register(2, metrics={"roc_auc": 0.5})

    with pytest.raises(EverloopError, match="metric_floor") as caught:
        world.promote(2)
    assert caught.value.kind is Kind.PRECONDITION
    assert world.stages()[2] == "rejected"


def test_the_same_training_is_registered_once(world):
    world.register(1)
    world.register(1)
    world.register(1, event_id="the same training in another event")

    assert world.stages() == {1: "production"}
    assert world.announced() == [("ModelRegistered", 1), ("ModelPromoted", 1)]
    assert len(world.registry.models["late"].versions) == 1


def test_an_unknown_pipeline_is_refused(world):
    with pytest.raises(EverloopError, match="no pipeline is named 'other'") as caught:
        world.register(1, model="other")
    assert caught.value.kind is Kind.PRECONDITION
    assert world.registry.models == {}


def test_manual_approval_waits_in_staging(world):
    world.use(approval="manual")
    world.register(1)
    assert world.stages() == {1: "staging"}
    assert world.aliases() == {"staging": 1}
    assert world.announced() == [("ModelRegistered", 1)]

    answer = world.promote(1, request_id="r1")
    assert answer.stage == "production"
    assert world.aliases() == {"production": 1}
    event = world.events()[-1]
    assert event.type.endswith("ModelPromoted")
    assert event.cause == "r1"


def test_promotion_puts_away_older_versions_that_waited(world):
    world.use(approval="manual")
    for number in (1, 2, 3):
        world.register(number)
    world.promote(2)
    assert world.stages() == {1: "archived", 2: "production", 3: "staging"}
    assert world.aliases() == {"production": 2, "staging": 3}


def test_an_archived_version_may_be_promoted_by_hand(world):
    world.register(1)
    world.register(2)
    world.promote(1)
    assert world.stages() == {1: "production", 2: "archived"}
    assert world.aliases() == {"production": 1}


def test_promoting_what_serves_changes_nothing(world):
    world.register(1)
    before = world.etag(), world.trail(), world.announced()
    assert world.promote(1, request_id="again").version == 1
    assert world.promote(1, request_id="again").version == 1
    assert (world.etag(), world.trail(), world.announced()) == before


def test_a_stale_etag_is_a_conflict(world):
    world.use(approval="manual")
    world.register(1)
    seen = world.etag()
    world.register(2)
    with pytest.raises(EverloopError) as caught:
        world.promote(1, etag=seen)
    assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "ETAG_MISMATCH")
    assert caught.value.metadata["etag"] == world.etag()
    assert world.promote(1, etag=world.etag()).stage == "production"


def test_a_repeated_request_returns_the_first_answer(world):
    world.use(approval="manual")
    world.register(1)
    world.register(2)
    first = world.promote(1, request_id="r", etag=world.etag())
    world.promote(2)
    assert world.promote(1, request_id="r", etag="long past") == first
    assert first.stage == "production"
    assert world.stages() == {1: "archived", 2: "production"}


def test_a_request_id_belongs_to_one_request(world):
    world.register(1)
    world.register(2)
    world.promote(1, request_id="r")
    for wrong in (lambda: world.promote(2, request_id="r"), lambda: world.rollback(request_id="r")):
        with pytest.raises(EverloopError) as caught:
            wrong()
        assert (caught.value.kind, caught.value.metadata) == (Kind.INVALID, {"field": "request_id"})


def test_rollback_walks_back_through_what_served(world):
    for number in (1, 2, 3):
        world.register(number)
    assert world.rollback().version == 2
    assert world.aliases() == {"production": 2}
    assert world.events()[-1].data.rollback
    assert world.events()[-1].data.previous_version == 3
    assert world.rollback().version == 1
    with pytest.raises(EverloopError) as caught:
        world.rollback()
    assert (caught.value.kind, caught.value.reason) == (
        Kind.PRECONDITION,
        "NOTHING_TO_ROLL_BACK_TO",
    )
    assert world.stages() == {1: "production", 2: "archived", 3: "archived"}


def test_after_a_rollback_the_next_promotion_is_undone_to_what_served_then(world):
    for number in (1, 2):
        world.register(number)
    world.rollback()
    world.register(3)
    assert world.production() == 3
    assert world.rollback().version == 1


def test_a_rollback_is_idempotent_by_request_id(world):
    for number in (1, 2, 3):
        world.register(number)
    assert world.rollback(request_id="r").version == 2
    assert world.rollback(request_id="r").version == 2
    assert world.production() == 2


def test_rollback_without_production_is_a_failed_precondition(world):
    world.use(approval="manual")
    world.register(1)
    with pytest.raises(EverloopError) as caught:
        world.rollback()
    assert caught.value.kind is Kind.PRECONDITION


def test_a_training_compared_with_a_version_that_was_rolled_back_is_refused(world):
    world.register(1)
    world.register(2)
    late = world.train(3)  # compared with 2
    world.rollback()
    world.registrar.register(late)
    assert world.stages() == {1: "production", 2: "archived", 3: "rejected"}
    assert "train again" in world.events()[-1].data.version.gates[1].message


@pytest.mark.parametrize(("version", "reason"), [(9, "VERSION_NOT_FOUND"), (1, "MODEL_NOT_FOUND")])
def test_what_is_not_there_is_not_found(world, version, reason):
    if reason == "VERSION_NOT_FOUND":
        world.register(1)
    with pytest.raises(EverloopError) as caught:
        world.promote(version)
    assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, reason)


def test_without_mlflow_a_move_is_unavailable_and_leaves_nothing(world):
    world.register(1)
    world.register(2)
    before = world.etag(), world.trail(), world.announced()
    world.registry.reachable = False
    for move in (lambda: world.promote(1, request_id="r"), world.rollback):
        with pytest.raises(EverloopError) as caught:
            move()
        assert caught.value.kind is Kind.UNAVAILABLE
    assert (world.etag(), world.trail(), world.announced()) == before
    world.registry.reachable = True
    assert world.promote(1, request_id="r").version == 1


def test_a_version_deleted_in_mlflow_is_not_promoted(world):
    world.register(1)
    world.register(2)
    del world.registry.models["late"].versions[1]
    with pytest.raises(EverloopError) as caught:
        world.rollback()
    assert caught.value.kind is Kind.NOT_FOUND
    assert world.production() == 2
    world.register(3)
    assert world.production() == 3


def test_the_reconciler_puts_a_hand_made_change_in_mlflow_right(world):
    world.register(1)
    world.register(2)
    world.registry.set_alias("late", "production", 1)
    world.registry.set_alias("late", "staging", 1)
    world.reconcile()
    assert world.aliases() == {"production": 2}
    assert len(world.announced()) == 4


def test_the_audit_trail_cannot_be_changed(world):
    import sqlalchemy as sa

    world.register(1)
    for statement in ("UPDATE audit SET actor = 'eve'", "DELETE FROM audit"):
        with (
            pytest.raises(sa.exc.DBAPIError, match="append-only"),
            world.database.unit_of_work() as work,
        ):
            work.connection.execute(sa.text(statement))
    assert len(world.trail()) == 3


def remembered(world) -> set[str]:
    with world.database.read() as connection:
        return set(connection.scalars(sa.text("SELECT request_id FROM requests")))


def test_answers_are_forgotten_after_their_time_and_not_before(world):
    world.register(1)
    world.register(2)
    world.promote(1, request_id="mine")
    with world.database.unit_of_work() as work:
        Store(work.connection).forget(timedelta(hours=1))
    assert remembered(world) == {"mine"}

    stopper, reconciler = Stopper(), Reconciler(world.database, world.promoter, 60, timedelta(0))
    reconciler.start(stopper)
    deadline = time.monotonic() + 10
    while remembered(world):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stopper.stop()
    reconciler.stop()
    assert not stopper.failed
