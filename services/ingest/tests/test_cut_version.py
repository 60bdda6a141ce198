"""Versions are complete, numbered without gaps, one per request, and survive a crash at every step."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import announce, build_parts, metrics
from everloop_ingest.domain import ObjectFile, Part, Pushed, Rows, State, Unversioned, Version
from everloop_ingest.schedule import due
from everloop_runtime.database import LARGEST_MESSAGE
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import encode

Make = Callable[..., bytes]
DATASETS = "everloop.datasets"


def ids(world: Any, version: Any) -> list[str]:
    return [row["parcel"] for row in world.rows(version)]


def test_a_version_holds_all_that_was_on_the_topic(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"), make_record("b"))
    world.send(2, make_record("c", lost=True), b'{"parcel": "a", "lost": false}')
    version = world.cut(world.pipeline, "r1", 5.0)
    assert (version.number, version.state, version.shards) == (1, State.AVAILABLE, 2)
    assert ids(world, version) == ["a", "b", "c"]
    assert (version.rows.rows, version.rows.labelled_rows) == (3, 2)
    [event] = world.events(DATASETS)
    assert event.cause == "r1"
    assert event.data.dataset.git_tag == "parcels/v1"
    assert event.data.dataset.rows == 3
    assert [path.name for path in (world.folder / "work").iterdir()] == ["index"]


def test_a_label_may_come_before_its_record_and_in_an_earlier_version(
    world: Any, make_record: Make
) -> None:
    world.send(0, b'{"parcel": "b", "lost": true}', make_record("a"))
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(1, make_record("b"))
    second = world.cut(world.pipeline, "r2", 5.0)
    assert [(row["parcel"], row["lost"]) for row in world.rows(first)] == [("a", None)]
    assert [(row["parcel"], row["lost"]) for row in world.rows(second)] == [
        ("a", None),
        ("b", True),
    ]


def test_a_repeated_request_returns_the_first_answer(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"))
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(0, make_record("b"))
    assert world.cut(world.pipeline, "r1", 5.0) == first
    assert world.cut(world.pipeline, "r2", 5.0).number == 2
    assert world.cut(world.pipeline, "r1", 5.0) == first


def test_where_nothing_is_new_the_newest_version_is_the_answer(
    world: Any, make_record: Make
) -> None:
    world.send(0, make_record("a"))
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(0, b"broken")
    assert world.cut(world.pipeline, "r2", 5.0) == first
    world.send(0, make_record("b"))
    assert world.cut(world.pipeline, "r2", 5.0) == first  # it has its answer
    assert len(world.events(DATASETS)) == 1


@pytest.mark.parametrize("values", [[], [b"broken"], [b'{"parcel": "a", "lost": true}']])
def test_without_a_record_there_is_no_version(world: Any, values: list[bytes]) -> None:
    world.send(0, *values)
    with pytest.raises(EverloopError) as caught:
        world.cut(world.pipeline, "r1", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "NO_RECORDS")


def test_calls_that_race_with_one_request_id_get_one_version(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda _: world.cut(world.pipeline, "r1", 30.0), range(8)))
    assert len({version.number for version in versions}) == 1
    assert len(world.events(DATASETS)) == 1


def test_a_writer_that_stays_behind_ends_the_call_at_its_deadline(
    world: Any, make_record: Make
) -> None:
    world.send(0, make_record("a"))
    world.stuck = True
    with pytest.raises(EverloopError) as caught:
        world.cut(world.pipeline, "r1", 0.05)
    assert (caught.value.kind, caught.value.reason) == (Kind.DEADLINE, "WRITER_BEHIND")
    world.stuck = False
    assert world.cut(world.pipeline, "r1", 5.0).number == 1


STEPS = [
    ("cuts", "begin", "after"),
    ("files", "fetch", "before"),
    ("files", "put", "before"),
    ("files", "put", "after"),
    ("repository", "publish", "before"),
    ("cuts", "complete", "before"),
    ("cuts", "complete", "after"),
]
"""Without those that leave what the next one finds: nothing is kept between fetch and put, publish and complete."""


@pytest.mark.parametrize("resume", ["repeat", "finish", "other request"])
@pytest.mark.parametrize(("owner", "method", "when"), STEPS)
def test_a_crash_at_any_step_ends_in_the_same_version(
    make_world: Any,
    make_record: Make,
    crash: Any,
    owner: str,
    method: str,
    when: str,
    resume: str,
) -> None:
    broken, undisturbed = make_world(), make_world()
    for world in (broken, undisturbed):
        world.send(1, *(make_record(f"old{n}") for n in range(9)), b'{"parcel": "b", "lost": true}')
        world.cut(world.pipeline, "r0", 5.0)
        world.send(0, make_record("a"), make_record("b"), make_record("old3", weight=7))
        world.settle_all()
    with pytest.raises(crash(getattr(broken, owner), method, when)):
        broken.cut(broken.pipeline, "r1", 5.0)
    broken.restart()
    broken.send(0, make_record("later"))
    if resume == "finish":
        broken.cut.finish()
    if resume == "other request":
        assert broken.cut(broken.pipeline, "r2", 5.0).number == 3
    version = broken.cut(broken.pipeline, "r1", 5.0)
    expected = undisturbed.cut(undisturbed.pipeline, "r1", 5.0)
    assert (version.number, version.rows, version.file) == (2, expected.rows, expected.file)
    assert broken.versions.parts(version) == undisturbed.versions.parts(expected)
    assert broken.rows(version) == undisturbed.rows(expected)
    assert {row["parcel"]: row["lost"] for row in broken.rows(version)}["b"] is True
    announced = [event.data.dataset.version for event in broken.events(DATASETS)]
    assert announced == ([1, 2, 3] if resume == "other request" else [1, 2])


def test_an_orphan_object_is_never_read(world: Any, make_record: Make, crash: Any) -> None:
    world.send(0, make_record("a", weight=1), make_record("a", weight=2))
    with pytest.raises(crash(world.files, "put", "after")):
        world.settle_all()
    world.restart()
    world.send(0, make_record("a", weight=3))
    version = world.cut(world.pipeline, "r1", 5.0)
    assert len(shard_files(world)) == 2
    assert version.shards == 1
    assert [row["weight"] for row in world.rows(version)] == [3.0]


def test_a_version_costs_what_is_new_and_shares_the_rest(world: Any, make_record: Make) -> None:
    hours = [make_record(f"p{n:02}", sent=f"2026-03-01T{n:02}:00:00Z") for n in range(20)]
    world.send(0, *hours)
    first = world.cut(world.pipeline, "r1", 5.0)
    for shard in shard_files(world):
        shard.unlink()  # what is in a version is read from its parts
    world.send(1, b'{"parcel": "p02", "lost": true}')
    second = world.cut(world.pipeline, "r2", 5.0)
    parts = world.versions.parts(first), world.versions.parts(second)
    assert [len(both) for both in parts] == [5, 5]
    assert [one == other for one, other in zip(*parts, strict=True)] == [False] + 4 * [True]
    assert world.repository.fetched == parts[0][:1]
    assert (second.rows.labelled_rows, second.shards) == (1, 2)
    created = world.events(DATASETS)[1].data.dataset
    assert [item.md5 for item in created.objects] == [part.md5 for part in parts[1]]
    assert (created.data.path, created.data.md5) == ("parcels/rows", second.file.md5)
    assert world.rows(first)[2]["lost"] is None  # it stays what it was


def test_a_version_holds_what_was_known_when_it_was_cut(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a", weight=1), make_record("b", weight=2))
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(1, b'{"parcel": "a", "lost": true}', make_record("b", weight=3))
    second = world.cut(world.pipeline, "r2", 5.0)
    world.send(2, b'{"parcel": "a", "lost": false}')
    third = world.cut(world.pipeline, "r3", 5.0)
    known = [
        [(row["parcel"], row["weight"], row["lost"]) for row in world.rows(version)]
        for version in (first, second, third)
    ]
    assert known == [
        [("a", 1.0, None), ("b", 2.0, None)],
        [("a", 1.0, True), ("b", 3.0, None)],
        [("a", 1.0, False), ("b", 3.0, None)],
    ]


@pytest.mark.parametrize("what", ["rows", "state"])
def test_a_part_that_is_lost_keeps_its_pipeline_waiting_until_it_is_back(
    world: Any, make_record: Make, what: str
) -> None:
    world.send(0, make_record("a"))
    [part] = world.versions.parts(world.cut(world.pipeline, "r1", 5.0))
    state = world.bucket / part.state
    content = state.read_bytes(), world.repository.content[part.md5]
    away = EverloopError(Kind.UNAVAILABLE, "PART_LOST", "gone")
    real = world.repository.fetch
    if what == "state":
        state.unlink()
    else:

        def lost(*arguments: Any) -> Any:
            raise away

        world.repository.fetch = lost
    world.send(0, make_record("b"))
    for _ in range(2):
        with pytest.raises(EverloopError) as caught:
            world.cut(world.pipeline, "r2", 5.0)
        assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "PART_LOST")
    state.write_bytes(content[0])
    world.repository.fetch = real
    assert ids(world, world.cut(world.pipeline, "r2", 5.0)) == ["a", "b"]


def shard_files(world: Any, pipeline: str = "parcels") -> list[Path]:
    return sorted((world.bucket / pipeline / "shards").rglob("*.parquet"))


def test_a_version_whose_shard_is_lost_fails_and_the_next_takes_what_is_left(
    world: Any, make_record: Make, caplog: pytest.LogCaptureFixture
) -> None:
    counted = metrics.LOST_SHARDS.labels("parcels")._value.get()
    world.send(0, make_record("a"))
    assert world.cut(world.pipeline, "r1", 5.0).number == 1
    world.send(0, make_record("b"))
    world.send(1, make_record("c"))
    world.settle_all()
    gone = shard_files(world)[1]
    gone.unlink()

    version = world.cut(world.pipeline, "r2", 5.0)
    assert (version.number, version.state, version.shards) == (3, State.AVAILABLE, 2)
    assert ids(world, version) == ["a", "c"]
    failed = world.versions.get("parcels", 2)
    key = str(gone.relative_to(world.bucket))
    assert failed.state is State.FAILED
    assert failed.error == f"the object store has lost 1 of 3 shards: {key}"
    assert key in caplog.text
    assert metrics.LOST_SHARDS.labels("parcels")._value.get() == counted + 1
    assert world.cut(world.pipeline, "r2", 5.0) == version
    assert world.versions.get("parcels", 0) == version
    announced = [event.data.dataset.version for event in world.events(DATASETS)]
    assert announced == [1, 3]
    assert world.cuts.unversioned("parcels") == Unversioned(0, None)


def test_a_shard_that_is_in_a_version_is_needed_no_more(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"))
    world.cut(world.pipeline, "r1", 5.0)
    [gone] = shard_files(world)
    gone.unlink()
    world.send(1, make_record("b"))
    assert ids(world, world.cut(world.pipeline, "r2", 5.0)) == ["a", "b"]


def test_a_shard_that_is_brought_back_is_in_the_next_version(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    [gone] = shard_files(world)
    content = gone.read_bytes()
    gone.unlink()
    world.send(1, make_record("b"))
    assert ids(world, world.cut(world.pipeline, "r2", 5.0)) == ["b"]
    # Brought back, and marked as the README says, it is in the next version.
    gone.write_bytes(content)
    with world.database.unit_of_work() as work:
        work.connection.execute(sa.text("UPDATE shards SET lost = false"))
    version = world.cut(world.pipeline, "r3", 5.0)
    assert (version.number, ids(world, version)) == (3, ["a", "b"])


def test_where_every_shard_is_lost_there_is_no_record(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"), b'{"parcel": "a", "lost": true}')
    world.settle_all()
    [gone] = shard_files(world)
    gone.unlink()
    for _ in range(2):
        with pytest.raises(EverloopError) as caught:
            world.cut(world.pipeline, "r1", 5.0)
        assert caught.value.reason == "NO_RECORDS"
    [failed] = world.versions.page("parcels", None, 9)
    assert failed.state is State.FAILED
    world.send(0, make_record("b"))
    assert world.cut(world.pipeline, "r1", 5.0).number == 2


def test_one_pipeline_does_not_keep_the_others_from_finishing(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    world.store_elsewhere(make_record("b"))
    now = datetime.now(UTC)
    for pipeline in (world.pipeline, world.other):
        world.begin(pipeline.name, "r", now)
    real = world.repository.publish
    away = EverloopError(Kind.UNAVAILABLE, "DATA_REPOSITORY_UNAVAILABLE", "away")
    errors = iter([RuntimeError("no space left"), away])

    def publish(version: Any, *rest: Any) -> Any:
        error = next(errors, None) if version.pipeline == "parcels" else None
        if error:
            raise error
        return real(version, *rest)

    monkeypatch.setattr(world.repository, "publish", publish)
    states = []
    for _ in range(3):
        world.cut.finish()
        found = [world.versions.get(name, 1).state for name in ("parcels", "letters")]
        states.append(found)
    assert states == [
        [State.CUTTING, State.AVAILABLE],
        [State.CUTTING, State.AVAILABLE],
        [State.AVAILABLE, State.AVAILABLE],
    ]


def test_a_lost_shard_ends_the_wait_of_a_version_that_a_crash_left(
    world: Any, make_record: Make
) -> None:
    world.send(0, make_record("a"))
    world.send(1, make_record("b"))
    world.settle_all()
    begun = world.begin("parcels", "r1", datetime.now(UTC))
    shard_files(world)[0].unlink()
    world.cut.finish()
    assert world.versions.get("parcels", begun.number).state is State.FAILED
    assert world.cuts.unversioned("parcels").records == 1
    version = world.cut(world.pipeline, "r1", 5.0)
    assert (version.number, ids(world, version)) == (2, ["b"])


class Blocked:
    """Makes one pipeline's publishing wait."""

    def __init__(self, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()
        real = world.repository.publish

        def publish(version: Any, *rest: Any) -> Any:
            if version.pipeline == world.pipeline.name:
                self.began.set()
                assert self.go_on.wait(30)
            return real(version, *rest)

        monkeypatch.setattr(world.repository, "publish", publish)


def test_pipelines_are_cut_beside_each_other(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(0, make_record("a"))
    world.settle_all()
    world.store_elsewhere(make_record("b"))
    blocked = Blocked(world, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.cut, world.pipeline, "r1", 30.0)
        assert blocked.began.wait(30)
        world.cut.finish()  # passes over what somebody is cutting
        assert world.cut.cut(world.other, "r1", 0.0).state is State.AVAILABLE
        with pytest.raises(EverloopError) as caught:
            world.cut.cut(world.pipeline, "r2", 0.0)
        assert (caught.value.kind, caught.value.reason) == (Kind.DEADLINE, "CUT_RUNNING")
        blocked.go_on.set()
        assert slow.result(30).number == 1


def test_callers_beyond_the_bound_are_refused_at_once(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(0, make_record("a"))
    first = world.cut(world.pipeline, "r0", 5.0)
    world.send(0, make_record("b"))
    world.callers = 1
    world.restart()
    blocked = Blocked(world, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(world.cut, world.pipeline, "r1", 30.0)
        assert blocked.began.wait(30)
        for pipeline in (world.pipeline, world.other):
            with pytest.raises(EverloopError) as caught:
                world.cut(pipeline, "r2", 30.0)
            assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "CUT_RUNNING")
        assert world.cut(world.pipeline, "r0", 0.0) == first  # what is known waits for nobody
        assert not slow.done()
        blocked.go_on.set()
        assert slow.result(30).number == 2
    assert world.cut(world.pipeline, "r2", 5.0).number == 2


def test_versions_are_due_by_rows_and_by_age(pipeline: Pipeline) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert due(pipeline, Unversioned(99, now - timedelta(minutes=59)), now) is None
    assert due(pipeline, Unversioned(100, now), now) == "rows"
    assert due(pipeline, Unversioned(1, now - timedelta(hours=1)), now) == "age"
    assert due(pipeline, Unversioned(0, None), now) is None


def test_the_scheduler_cuts_what_is_due(world: Any, make_record: Make) -> None:
    scheduler = world.scheduler()
    now = datetime.now(UTC)
    world.send(0, *(make_record(f"p{n}") for n in range(99)))
    world.settle_all()
    scheduler.look(world.pipeline, now)
    assert world.versions.page("parcels", None, 9) == []
    world.send(0, make_record("one more"))
    world.settle_all()
    scheduler.look(world.pipeline, now)
    scheduler.look(world.pipeline, now)
    world.send(0, b'{"parcel": "p1", "lost": true}')
    world.settle_all()
    scheduler.look(world.pipeline, now + timedelta(hours=2))
    causes = [version.cause_id for version in world.versions.page("parcels", None, 9)]
    assert causes == ["schedule/age/parcels/v2", "schedule/rows/parcels/v1"]


def test_requests_are_forgotten_after_their_time_some_at_a_turn(
    world: Any, make_record: Make
) -> None:
    scheduler = world.scheduler()
    now = datetime.now(UTC)
    old = now - timedelta(days=31)
    world.send(0, make_record("a"))
    world.settle_all()
    for number in range(5):
        assert world.begin("parcels", f"r{number}", old) is not None
        world.requests.answer("parcels", f"p{number}", Pushed(b"", []), old)
    world.cut.finish()
    world.begin("parcels", "young", now - timedelta(days=29))
    world.requests.answer("parcels", "young", Pushed(b"", []), now - timedelta(days=29))

    def known() -> tuple[int, int]:
        cuts = [world.versions.requested("parcels", f"r{number}") for number in range(5)]
        pushes = [world.requests.pushed("parcels", f"p{number}") for number in range(5)]
        return 5 - cuts.count(None), 5 - pushes.count(None)

    assert world.requests.forget(now - timedelta(days=30), 2) == 4
    assert known() == (3, 3)
    scheduler.forget(now)
    assert known() == (0, 0)
    assert world.versions.requested("parcels", "young").number == 1
    assert world.requests.pushed("parcels", "young") is not None
    assert world.cut(world.pipeline, "r1", 5.0).number == 1  # the version itself stays


def test_a_version_of_too_many_parts_is_not_published_and_goes_on_with_larger_ones(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announce, "LARGEST_MESSAGE", 10_000 + 1_500)
    monkeypatch.setattr(build_parts, "_MANY_PARTS", 3)
    world.part_rows = 1
    world.restart()
    names = [f"p{number}" for number in range(8)]
    world.send(0, *map(make_record, names))
    world.cut(world.pipeline, "r1", 5.0)
    world.send(0, *map(make_record, more := [f"q{number}" for number in range(8)]))
    with pytest.raises(EverloopError) as caught:
        world.cut(world.pipeline, "r2", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "TOO_MANY_PARTS")
    assert "parcels/v2 has 16 parts" in str(caught.value)
    assert world.versions.get("parcels", 2).state is State.CUTTING
    assert [*world.repository.tags] == ["parcels/v1"]
    world.part_rows = 4
    world.restart()
    version = world.cut(world.pipeline, "r2", 5.0)
    assert (version.number, version.state) == (2, State.AVAILABLE)
    assert len(world.versions.parts(version)) <= 8
    assert sorted(ids(world, version)) == sorted(names + more)


def test_what_is_let_through_fits_a_message() -> None:
    time = datetime(2026, 3, 1, tzinfo=UTC)
    repository: Any = SimpleNamespace(
        url="/var/lib/everloop/datasets",
        versioning="dvc",
        uri=lambda part: f"s3://everloop-dvc/dvc/files/md5/{part.md5[:2]}/{part.md5[2:]}",
    )
    part = Part("a" * 32, "b" * 64, 10**9, 65_536, 0, time, "id", time, "state", "columns")
    cutting = Version("flight-delays", 10**6, State.CUTTING, "r" * 200, time, 10**6)

    def passes(count: int) -> bool:
        try:
            announce.check_announceable(cutting, repository, [part] * count)
        except EverloopError:
            return False
        return True

    most = bisect.bisect_left(range(20_000), True, key=lambda count: not passes(count)) - 1
    assert 5_000 < most < 10_000
    file = ObjectFile("flight-delays/rows", "u" * 200, "m" * 36, 10**15, "t" * 80, "c" * 40)
    parts = [part] * most
    done = replace(cutting, state=State.AVAILABLE, rows=Rows.of(parts), file=file)
    key, value, headers = encode(announce.announcement(done, repository, parts))
    whole = len(key or b"") + len(value) + sum(len(name) + len(item) for name, item in headers)
    assert LARGEST_MESSAGE - 20_000 < whole <= LARGEST_MESSAGE
