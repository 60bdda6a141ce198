"""Versions are complete, numbered without gaps, one per request, and survive a crash at every step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import State, Unversioned
from everloop_ingest.schedule import Scheduler, due
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Stopper

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
    assert not list((world.folder / "work").iterdir())


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
    ("store", "begin_version", "after"),
    ("files", "fetch", "before"),
    ("files", "fetch", "after"),
    ("repository", "publish", "before"),
    ("repository", "publish", "after"),
    ("store", "complete", "before"),
    ("store", "complete", "after"),
]


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
        world.send(0, make_record("a"), make_record("b"))
    with pytest.raises(crash(getattr(broken, owner), method, when)):
        broken.cut(broken.pipeline, "r1", 5.0)
    broken.restart()
    broken.send(0, make_record("later"))
    if resume == "finish":
        broken.cut.finish()
    if resume == "other request":
        assert broken.cut(broken.pipeline, "r2", 5.0).number == 2
    version = broken.cut(broken.pipeline, "r1", 5.0)
    expected = undisturbed.cut(undisturbed.pipeline, "r1", 5.0)
    assert (version.number, version.rows, version.file) == (1, expected.rows, expected.file)
    assert broken.rows(version) == undisturbed.rows(expected)
    announced = [event.data.dataset.version for event in broken.events(DATASETS)]
    assert announced == ([1, 2] if resume == "other request" else [1])


def test_an_orphan_object_is_never_read(world: Any, make_record: Make, crash: Any) -> None:
    world.send(0, make_record("a", weight=1), make_record("a", weight=2))
    with pytest.raises(crash(world.files, "put", "after")):
        world.settle_all()
    world.restart()
    world.send(0, make_record("a", weight=3))
    version = world.cut(world.pipeline, "r1", 5.0)
    assert len(list(world.bucket.rglob("*.parquet"))) == 2
    assert version.shards == 1
    assert [row["weight"] for row in world.rows(version)] == [3.0]


def test_versions_are_due_by_rows_and_by_age(pipeline: Pipeline) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert due(pipeline, Unversioned(99, now - timedelta(minutes=59)), now) is None
    assert due(pipeline, Unversioned(100, now), now) == "rows"
    assert due(pipeline, Unversioned(1, now - timedelta(hours=1)), now) == "age"
    assert due(pipeline, Unversioned(0, None), now) is None


def test_the_scheduler_cuts_what_is_due(world: Any, make_record: Make) -> None:
    scheduler = Scheduler({"parcels": world.pipeline}, world.store, world.cut, 1.0)
    scheduler._stopper = Stopper()
    now = datetime.now(UTC)
    world.send(0, *(make_record(f"p{n}") for n in range(99)))
    world.settle_all()
    scheduler.look(world.pipeline, now)
    assert world.store.versions("parcels", None, 9) == []
    world.send(0, make_record("one more"))
    world.settle_all()
    scheduler.look(world.pipeline, now)
    scheduler.look(world.pipeline, now)
    world.send(0, b'{"parcel": "p1", "lost": true}')
    world.settle_all()
    scheduler.look(world.pipeline, now + timedelta(hours=2))
    causes = [version.cause_id for version in world.store.versions("parcels", None, 9)]
    assert causes == ["schedule/age/parcels/v2", "schedule/rows/parcels/v1"]
