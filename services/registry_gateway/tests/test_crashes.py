"""kill -9 between any two steps: whatever was decided comes true once, and nothing comes true by half."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from everloop_registry_gateway.domain import Act
from everloop_registry_gateway.promote import Promoter
from everloop_registry_gateway.reconcile import reconcile

WRITES = ("ensure_version", "set_alias", "delete_alias", "set_tags")


class Killed(BaseException):
    """Not an Exception: no handler of the gateway may mend it."""


class Bomb:
    """Ends the process at the n-th step; a step is a write to MLflow or a commit, before or after it."""

    def __init__(self, step: int) -> None:
        self.left = step

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


class Fragile:
    """A registry whose every write may be the last thing that the process does."""

    def __init__(self, registry, bomb: Bomb) -> None:
        self._registry = registry
        self._bomb = bomb

    def __getattr__(self, name: str):
        method = getattr(self._registry, name)
        if name not in WRITES:
            return method

        def step(*args, **kwargs):
            self._bomb.tick()
            answer = method(*args, **kwargs)
            self._bomb.tick()
            return answer

        return step


@contextmanager
def armed(world, step: int) -> Iterator[Bomb]:
    """A process of the world that dies at its n-th step."""
    bomb = Bomb(step)
    registry, unit_of_work = world.registry, world.database.unit_of_work

    @contextmanager
    def fragile_unit_of_work():
        with unit_of_work() as work:
            yield work
            bomb.tick()  # everything is written, nothing is committed
        bomb.tick()

    world.registry = Fragile(registry, bomb)
    world.database.unit_of_work = fragile_unit_of_work
    world.restart()
    try:
        yield bomb
    except Killed:
        pass
    finally:
        world.registry = registry
        world.database.unit_of_work = unit_of_work
        world.restart()


def every_step(make_world, prepare, act, fewest=5):
    """A world per step at which `act` may be cut off, cut off there."""
    for step in range(1, 100):
        world = make_world()
        prepare(world)
        with armed(world, step) as bomb:
            act(world)
        yield world
        if bomb.left > 0:
            assert step > fewest, "hardly any step was seen: the bomb is a dud"
            return
    raise AssertionError("the action never ended")


def settled(world) -> dict[str, Any]:
    """All that anybody can see of a world, but for times and numbers of changes."""
    return {
        "stages": world.stages(),
        "aliases": world.aliases(),
        "trail": sorted(world.trail()),
        "announced": world.announced(),
        "rollouts": [
            (rollout.candidate_version, str(rollout.state)) for rollout in world.all_rollouts()
        ],
        "versions": len(world.registry.models["late"].versions),
        "tags": [
            world.registry.tags("late", number)["everloop.stage"]
            for number in world.registry.models["late"].versions
        ],
    }


@pytest.mark.parametrize("metric", [0.9, 0.1], ids=["passes", "is rejected"])
@pytest.mark.parametrize("approval", ["automatic", "manual"])
def test_a_registration_cut_off_anywhere_is_completed(worlds, approval, metric):
    def prepare(world):
        world.register(1)
        world.use(approval=approval)

    def act(world):
        world.register(2, metrics={"roc_auc": metric})

    expected = worlds()
    prepare(expected)
    act(expected)
    for world in every_step(worlds, prepare, act):
        act(world)  # Kafka delivers what was not committed again
        world.reconcile()
        assert settled(world) == settled(expected)


def promote_first(world):
    world.promote(1, request_id="r", etag="")


def roll_back(world):
    world.rollback(request_id="r")


@pytest.mark.parametrize("act", [promote_first, roll_back])
def test_a_move_cut_off_anywhere_is_done_once_when_it_is_repeated(worlds, act):
    def prepare(world):
        world.register(1)
        world.register(2)

    expected = worlds()
    prepare(expected)
    act(expected)
    for world in every_step(worlds, prepare, act):
        act(world)
        act(world)
        world.reconcile()
        assert settled(world) == settled(expected)


def test_a_move_cut_off_anywhere_comes_true_wholly_or_not_at_all_without_the_caller(worlds):
    def prepare(world):
        world.register(1)
        world.register(2)

    untouched, done = worlds(), worlds()
    prepare(untouched)
    prepare(done)
    promote_first(done)
    outcomes = []
    for world in every_step(worlds, prepare, promote_first):
        world.reconcile()
        state = settled(world)
        assert state in (settled(untouched), settled(done))
        outcomes.append(state == settled(done))
    # It is decided at one point in time, and stays decided.
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


@pytest.mark.parametrize("act", list(Act))
@pytest.mark.parametrize("rollout", [None, {"strategy": "canary"}], ids=["at once", "on trial"])
def test_a_ruling_cut_off_anywhere_is_done_once_when_it_is_repeated(worlds, act, rollout):
    def prepare(world):
        world.register(1)
        world.use(approval="manual", rollout=rollout)
        world.register(2)

    def rule(world):
        world.rule(act, 2, request_id="r")

    expected = worlds()
    prepare(expected)
    rule(expected)
    for world in every_step(worlds, prepare, rule, fewest=2):
        rule(world)
        rule(world)
        world.reconcile()
        assert settled(world) == settled(expected)


def test_no_promotion_is_announced_before_its_alias_is_set(worlds):
    for world in every_step(worlds, lambda world: None, lambda world: world.register(1)):
        if ("ModelPromoted", 1) in world.announced():
            assert world.aliases()["production"] == 1


def test_a_move_that_mlflow_interrupts_is_finished_when_it_is_back(world):
    world.register(1)
    world.register(2)
    registry = world.registry
    set_alias = registry.set_alias

    def gone(*args):
        registry.reachable = False
        set_alias(*args)

    registry.set_alias = gone
    with pytest.raises(Exception, match="does not answer"):
        promote_first(world)
    registry.set_alias = set_alias
    assert world.production() == 2, "what serves serves on until the alias is set"

    registry.reachable = True
    world.reconcile()
    assert world.production() == 1
    assert world.promote(1, request_id="r").version == 1
    assert world.announced().count(("ModelPromoted", 1)) == 2  # the first time, and now


def test_a_decided_move_of_a_version_deleted_meanwhile_is_abandoned(world):
    world.register(1)
    world.register(2)
    with armed(world, 3) as bomb:  # decided and committed, nothing else
        promote_first(world)
    assert bomb.left == 0
    del world.registry.models["late"].versions[1]

    world.reconcile()
    world.reconcile()
    assert world.production() == 2
    assert world.trail()[-1] == (1, "abandoned")
    assert world.aliases() == {"production": 2}
    world.register(3)
    assert world.production() == 3


def test_what_is_half_done_is_done_before_the_next_model_is_judged(world):
    world.register(1)
    world.register(2)
    late = world.train(3)  # compared with 2
    with armed(world, 3):
        roll_back(world)
    assert world.production() == 2
    world.registrar.register(late)
    assert world.stages() == {1: "production", 2: "archived", 3: "rejected"}


def test_a_move_that_two_processes_finish_at_once_is_finished_once(world):
    world.register(1)
    world.register(2)
    with armed(world, 3):
        roll_back(world)
    other = Promoter(world.database, world.registry, world.artifacts)
    set_alias = world.registry.set_alias

    def overtaken(*args):
        world.registry.set_alias = set_alias
        set_alias(*args)
        reconcile(world.database, other)

    world.registry.set_alias = overtaken
    world.reconcile()
    assert world.announced()[-1] == ("ModelPromoted", 1)
    assert world.announced().count(("ModelPromoted", 1)) == 2  # the first time, and this
    assert world.trail().count((1, "rolled_back")) == 1
    assert world.ask(lambda store: store.served_before("late")) == 0


CANARY = {"strategy": "canary", "bake": "10m", "min_requests": 100}


def put_on_trial(world):
    world.register(1)
    world.use(rollout=CANARY)
    world.register(2)
    world.report(200)


def test_a_registration_that_supersedes_cut_off_anywhere_is_completed(worlds):
    def act(world):
        world.register(3)

    expected = worlds()
    put_on_trial(expected)
    act(expected)
    assert [rollout.candidate_version for rollout in expected.all_rollouts()] == [3, 2]
    for world in every_step(worlds, put_on_trial, act):
        act(world)  # Kafka delivers what was not committed again
        world.reconcile()
        assert settled(world) == settled(expected)


def bake(world):
    world.judge(minutes=10)


def end_by_hand(world):
    (rollout,) = world.all_rollouts()
    world.end(rollout, promote=True, request_id="r")


@pytest.mark.parametrize("act", [bake, end_by_hand])
def test_a_promotion_after_a_trial_cut_off_anywhere_is_done_once(worlds, act):
    expected = worlds()
    put_on_trial(expected)
    act(expected)
    expected.reconcile()
    assert settled(expected)["rollouts"] == [(2, "promoted")]
    for world in every_step(worlds, put_on_trial, act):
        act(world)
        world.reconcile()
        assert settled(world) == settled(expected)
        act(world)
        assert settled(world) == settled(expected)


def test_a_promotion_that_the_judge_decided_comes_true_without_another_look(worlds):
    outcomes = []
    for world in every_step(worlds, put_on_trial, bake):
        world.reconcile()
        (rollout,) = world.all_rollouts()
        assert (rollout.state, world.production()) in (("running", 1), ("promoted", 2))
        assert world.announced().count(("RolloutEnded", 2)) == (rollout.state == "promoted")
        outcomes.append(rollout.state == "promoted")
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}


def test_a_failure_between_decision_and_end_does_not_undo_the_promotion(world):
    put_on_trial(world)
    with armed(world, 7) as bomb:  # two reports; then decided and committed, nothing else
        bake(world)
    assert bomb.left == 0
    assert world.report(200, sequence=2, failure="too late") == "running"
    world.judge()
    (rollout,) = world.all_rollouts()
    assert (rollout.state, world.production()) == ("promoted", 2)


def test_an_abort_cut_off_anywhere_is_whole_or_not_there_and_the_next_report_makes_it(worlds):
    def fail(world):
        world.report(0, sequence=2, failure="no artifact")

    expected = worlds()
    put_on_trial(expected)
    fail(expected)
    expected.reconcile()
    for step in (1, 2):
        world = worlds()
        put_on_trial(world)
        with armed(world, step):
            fail(world)
        (rollout,) = world.all_rollouts()
        assert (rollout.state, world.stages()[2]) in (
            ("running", "staging"),
            ("aborted", "rejected"),
        )
        fail(world)
        world.reconcile()
        assert settled(world) == settled(expected)
