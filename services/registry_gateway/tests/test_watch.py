"""Who watches is told of what should serve: at once, of every change, and of nothing else."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2 as pb
from everloop_registry_gateway.domain import Act
from everloop_runtime.service import Stopper


class Watcher:
    """Reads a stream beside the test."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self._told: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self.answers:
                self._told.put(answer)
            self._told.put("end")
        except grpc.RpcError as error:
            self._told.put(error.code())

    def next(self) -> Any:
        """Versions, and those on trial; or how the stream ended."""
        told = self._told.get(timeout=10)
        if not isinstance(told, pb.WatchProductionResponse):
            return told
        return (
            [(version.model, version.version) for version in told.versions],
            [trial.version.version for trial in told.trials],
        )

    @property
    def quiet(self) -> bool:
        """Whether nothing more was told."""
        return self._told.empty()


@pytest.fixture
def watch(world, artifacts_stub) -> Iterator[Callable[..., Watcher]]:
    stopper = Stopper()
    world.watch.start(stopper)
    stub = artifacts_stub()
    yield lambda model="": Watcher(
        stub.WatchProduction(pb.WatchProductionRequest(model=model), timeout=60)
    )
    stopper.stop()
    world.watch.stop()


def test_every_change_of_what_serves_is_told(world, watch):
    watcher = watch()
    assert watcher.next() == ([], [])
    world.register(1)
    assert watcher.next() == ([("late", 1)], [])
    world.register(2)
    assert watcher.next() == ([("late", 2)], [])
    world.rollback()
    assert watcher.next() == ([("late", 1)], [])
    assert watch().next() == ([("late", 1)], [])


def test_trials_are_told_as_they_begin_and_end(world, watch):
    world.register(1)
    world.use(rollout={"strategy": "canary", "bake": "10m", "min_requests": 100})
    watcher = watch()
    assert watcher.next() == ([("late", 1)], [])
    world.register(2)
    assert watcher.next() == ([("late", 1)], [2])
    world.end(world.rollout(), promote=False)
    assert watcher.next() == ([("late", 1)], [])
    world.register(3)
    assert watcher.next() == ([("late", 1)], [3])
    world.end(world.rollout(), promote=True)
    assert watcher.next() == ([("late", 3)], [])


def test_what_changes_nothing_that_serves_is_not_told(world, watch):
    world.register(1)
    world.use(approval="manual")
    watcher = watch()
    assert watcher.next() == ([("late", 1)], [])
    world.register(2)
    world.rule(Act.REJECT, 2)
    world.register(3)
    world.promote(3)
    assert watcher.next() == ([("late", 3)], [])
    assert watcher.quiet


def test_who_watches_one_model_is_told_of_no_other(world, watch):
    world.register(1)
    watcher, other = watch("late"), watch("other")
    assert (watcher.next(), other.next()) == (([("late", 1)], []), ([], []))
    world.register(2)
    assert watcher.next() == ([("late", 2)], [])
    assert other.quiet


def test_many_are_told_by_one_look(world, watch):
    watchers = [watch() for _ in range(3)]
    assert [watcher.next() for watcher in watchers] == [([], [])] * 3
    world.register(1)
    assert [watcher.next() for watcher in watchers] == [([("late", 1)], [])] * 3


def test_who_hangs_up_is_forgotten(world, watch):
    watcher = watch()
    watcher.next()
    assert len(world.watch._watchers) == 1
    watcher.answers.cancel()
    assert watcher.next() is grpc.StatusCode.CANCELLED
    waited = threading.Event()
    for _ in range(500):
        if not world.watch._watchers:
            break
        waited.wait(0.01)
    assert not world.watch._watchers


def test_whoever_watches_when_the_gateway_stops_is_let_go(world, watch):
    watcher = watch()
    watcher.next()
    world.watch.stop()
    assert watcher.next() == "end"


def test_a_database_that_is_away_for_a_moment_is_asked_again(world, watch, monkeypatch):
    from sqlalchemy.exc import OperationalError

    from everloop_registry_gateway.adapters.store import Store

    failed = threading.Event()
    revisions = Store.revisions

    def fails(store: Store) -> Any:
        failed.set()
        raise OperationalError("", {}, Exception("away"))

    watcher = watch()
    watcher.next()
    monkeypatch.setattr(Store, "revisions", fails)
    assert failed.wait(10)
    monkeypatch.setattr(Store, "revisions", revisions)
    world.register(1)
    assert watcher.next() == ([("late", 1)], [])
