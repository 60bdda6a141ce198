"""Several processes may cut a pipeline: one at a time does, and one that was killed or stood still is no obstacle."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everloop_ingest.domain import State
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.leases import Lease, Leases

Make = Callable[..., bytes]
DATASETS = "everloop.datasets"
NOW = datetime(2026, 3, 1, tzinfo=UTC)
SOON, LATER = NOW + timedelta(seconds=10), NOW + timedelta(seconds=20)


@pytest.fixture
def leases(make_database: Callable[..., Database], tmp_path: Any) -> Any:
    database = make_database(tmp_path)
    yield Leases(database, "cut_leases")
    database.close()


def lost(action: Callable[[], object]) -> bool:
    with pytest.raises(EverloopError) as caught:
        action()
    return (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "LEASE_LOST")


def test_a_lease_is_one_holders_until_it_expires(leases: Leases) -> None:
    one = leases.take("p", "one", NOW, SOON)
    assert one == Lease("p", 1)
    assert leases.take("p", "two", SOON - timedelta(microseconds=1), LATER) is None
    assert leases.take("other", "two", NOW, SOON) == Lease("other", 1)
    leases.check(one)
    two = leases.take("p", "two", SOON, LATER)
    assert two == Lease("p", 2)
    leases.check(two)
    assert lost(lambda: leases.check(one))


def test_a_lease_goes_on_as_long_as_it_is_extended(leases: Leases) -> None:
    one = leases.take("p", "one", NOW, SOON)
    assert one is not None
    assert leases.extend(one, LATER)
    assert leases.take("p", "two", SOON, LATER) is None
    leases.release(one, NOW)
    two = leases.take("p", "two", NOW, LATER)
    assert two is not None
    assert not leases.extend(one, LATER)
    leases.release(one, NOW)  # is no longer his to release
    assert leases.take("p", "one", SOON, LATER) is None


def test_a_holder_that_comes_back_has_it_at_once_and_what_it_was_before_has_lost_it(
    leases: Leases,
) -> None:
    before, after = (leases.take("p", "one", NOW, SOON) for _ in range(2))
    assert before is not None
    assert after == Lease("p", 2)
    assert lost(lambda: leases.check(before))


def test_of_many_that_want_it_at_once_one_has_it(leases: Leases) -> None:
    for turn in range(5):
        start = threading.Barrier(6)

        def take(number: int, turn: int = turn, start: Any = start) -> Lease | None:
            start.wait(30)
            return leases.take("p", f"{turn}-{number}", NOW, NOW + timedelta(hours=1))

        with ThreadPoolExecutor(6) as pool:
            found = [lease for lease in pool.map(take, range(6)) if lease]
        assert found == [Lease("p", turn + 1)]
        leases.release(found[0], NOW)


def another(world: Any, lease: timedelta = timedelta(seconds=30)) -> Any:
    """One more process on the same database, bucket and data repository, with a disk of its own for work."""
    other = copy.copy(world)
    other.holder, other.lease = "two", lease
    other.folder = world.folder / "two"
    other.restart()
    return other


def test_two_cutters_at_once_cut_one_version_after_the_other(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = another(world)
    inside, most, lock = 0, 0, threading.Lock()
    real = world.repository.publish

    def publish(*arguments: Any) -> Any:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        try:
            return real(*arguments)
        finally:
            with lock:
                inside -= 1

    monkeypatch.setattr(world.repository, "publish", publish)
    expected: set[str] = set()
    for turn in range(2):
        names = [f"p{turn}-{number}" for number in range(5)]
        expected |= {*names}
        world.send(0, *map(make_record, names))
        world.settle_all()
        start = threading.Barrier(2)

        def cut(process: Any, start: Any = start, turn: int = turn) -> Any:
            start.wait(30)
            return process.cut.cut(world.pipeline, f"{process.holder}-{turn}", 30.0)

        with ThreadPoolExecutor(2) as pool:
            one, other = pool.map(cut, (world, two))
        assert one == other
        assert (one.number, one.state) == (turn + 1, State.AVAILABLE)
        assert world.repository.tags[one.file.tag] == [p.md5 for p in world.versions.parts(one)]
        assert {row["parcel"] for row in world.rows(one)} == expected
    assert most == 1
    assert [event.data.dataset.version for event in world.events(DATASETS)] == [1, 2]


def test_a_cutter_that_was_killed_is_waited_for_until_its_lease_expires(
    world: Any, make_record: Make, crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lease = timedelta(seconds=1)
    world.restart()
    two = another(world)
    world.send(0, make_record("a"))
    world.settle_all()
    with (
        monkeypatch.context() as killed,
        pytest.raises(crash(world.repository, "publish", "after")),
    ):
        killed.setattr(world.leases, "release", lambda *_: None)  # what is killed releases nothing
        world.cut.cut(world.pipeline, "r1", 5.0)
    with pytest.raises(EverloopError) as caught:
        two.cut.cut(two.pipeline, "r2", 0.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.DEADLINE, "CUT_RUNNING")
    two.cut.finish()  # passes over it as well
    assert two.versions.get("parcels", 1).state is State.CUTTING
    version = two.cut.cut(two.pipeline, "r1", 30.0)
    assert (version.number, version.state) == (1, State.AVAILABLE)
    assert [row["parcel"] for row in two.rows(version)] == ["a"]
    assert len(two.events(DATASETS)) == 1


@pytest.mark.parametrize("step", ["begin", "publish", "complete"])
def test_a_cutter_that_stood_still_while_another_took_over_changes_nothing(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    two = another(world)
    world.send(0, make_record("a"))
    world.settle_all()
    owner = world.repository if step == "publish" else world.cuts
    real = getattr(owner, step)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(owner, step, real)
        expired = datetime.now(UTC) + timedelta(minutes=5)
        lease = two.leases.take("parcels", "two", expired, expired)
        two.leases.release(lease, NOW)
        two.send(1, make_record("b"))
        two.settle_all()
        assert two.cut.cut(two.pipeline, "r2", 5.0).state is State.AVAILABLE
        return real(*arguments)

    monkeypatch.setattr(owner, step, late)
    assert lost(lambda: world.cut.cut(world.pipeline, "r1", 5.0))
    versions = world.versions.page("parcels", None, 10)
    assert {version.state for version in versions} == {State.AVAILABLE}
    for version in versions:
        tagged = world.repository.tags[version.file.tag]
        assert tagged == [part.md5 for part in world.versions.parts(version)]
    assert {row["parcel"] for row in world.rows(versions[0])} == {"a", "b"}
    assert len(world.events(DATASETS)) == len(versions) == (1 if step == "begin" else 2)
    again = world.cut.cut(world.pipeline, "r1", 5.0)  # asked again, it has its answer
    assert again.number == 1


def test_a_long_cut_keeps_its_lease(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.lease = timedelta(seconds=0.4)
    world.restart()
    two = another(world)
    world.send(0, make_record("a"))
    world.settle_all()
    extended = threading.Semaphore(0)
    real_extend, real = world.leases.extend, world.repository.publish

    def extend(*arguments: Any) -> bool:
        done = real_extend(*arguments)
        extended.release()
        return bool(done)

    def publish(*arguments: Any) -> Any:
        for _ in range(5):  # longer than the lease would have lasted
            assert extended.acquire(timeout=30)
        with pytest.raises(EverloopError) as caught:
            two.cut.cut(two.pipeline, "r2", 0.0)
        assert caught.value.reason == "CUT_RUNNING"
        return real(*arguments)

    monkeypatch.setattr(world.leases, "extend", extend)
    monkeypatch.setattr(world.repository, "publish", publish)
    assert world.cut.cut(world.pipeline, "r1", 30.0).state is State.AVAILABLE
