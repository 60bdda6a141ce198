"""Distribution checks, and versions in quarantine."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.events import DATASETS
from everloop_contracts.pipeline import Checks, Pipeline
from everloop_ingest.adapters.store import quarantine
from everloop_ingest.checks import MAX_VALUES, Profile, violations
from everloop_ingest.domain import State
from everloop_ingest.erase_records import Entity
from everloop_runtime.errors import EverloopError, Kind

Make = Callable[..., bytes]

counts = st.dictionaries(st.sampled_from("xyz"), st.integers(1, 9))
profiles = st.builds(
    Profile,
    st.integers(0, 99),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 9)),
    st.dictionaries(st.sampled_from("ab"), st.none() | counts),
)


@given(profiles, profiles, profiles)
def test_profiles_add_up_in_any_order(one: Profile, two: Profile, three: Profile) -> None:
    assert one.plus(two).plus(three) == one.plus(two.plus(three)) == three.plus(one).plus(two)
    assert Profile.decode(one.encode()) == one


def test_a_field_with_too_many_values_is_no_category() -> None:
    many = Profile(1, {}, {"c": {str(n): 1 for n in range(MAX_VALUES)}})
    assert many.plus(Profile(1, {}, {"c": {"0": 1}})).values["c"] is not None
    assert many.plus(Profile(1, {}, {"c": {"one more": 1}})).values == {"c": None}


def test_a_field_that_came_later_was_null_before() -> None:
    before = Profile(900, {}, {}).plus(Profile(100, {"colour": 100}, {}))
    assert before.nulls == {"colour": 1_000}
    checks = Checks(max_null_rise=0.5, min_sample=100)
    assert violations(checks, 1_100, before, Profile(100, {"colour": 100}, {})) == []


BEFORE = Profile(1_000, {"gust": 100}, {"zone": {"A": 900}})


@pytest.mark.parametrize(
    ("new", "reasons"),
    [
        (Profile(1_000, {"gust": 900}, {"zone": {"A": 1, "B": 900}}), []),
        (
            Profile(1_000, {"gust": 901}, {}),
            ["gust: 90% of the new records are null, 10% of those before"],
        ),
        (
            Profile(1_000, {"gust": 0}, {"zone": {"B": 800, "a": 101}}),
            ["zone: 90% of the new records have values never seen before ('B', 'a')"],
        ),
        (Profile(999, {"gust": 999}, {"zone": {"B": 999}}), []),
        (Profile(1_000, {"new field": 1_000}, {"zone": None, "other": {"x": 1_000}}), []),
    ],
)
def test_shares_of_new_records_are_held_against_those_before(
    new: Profile, reasons: list[str]
) -> None:
    assert violations(Checks(), 1, BEFORE, new) == reasons


def test_checks_can_be_switched_off_and_a_version_needs_rows() -> None:
    new = Profile(1_000, {"gust": 1_000}, {"zone": {"B": 1_000}})
    assert violations(Checks(max_null_rise=None, max_unseen=None), 1, BEFORE, new) == []
    assert violations(Checks(min_rows=10), 9, BEFORE, BEFORE) == [
        "9 rows, at least 10 are asked for"
    ]


@pytest.fixture
def strict(world: Any, spec: dict[str, Any]) -> Any:
    """A world whose pipeline judges small samples."""
    cut = spec["cut"] | {"checks": {"min_sample": 2, "min_rows": 2}}
    world.pipeline = Pipeline.model_validate(spec | {"cut": cut})
    world.restart()
    return world


def without_zone(make_record: Make, *names: str) -> list[bytes]:
    return [make_record(name, zone=None) for name in names]


def announced(world: Any) -> list[int]:
    return [event.data.dataset.version for event in world.events(DATASETS)]


def test_a_version_that_fails_its_checks_is_not_announced_until_it_is_released(
    strict: Any, make_record: Make
) -> None:
    strict.send(0, *map(make_record, "ab"))
    first = strict.cut(strict.pipeline, "r1", 5.0)
    strict.send(0, *without_zone(make_record, "c", "d"))
    second = strict.cut(strict.pipeline, "r2", 5.0)
    assert second.state is State.QUARANTINED
    assert second.error == "zone: 100% of the new records are null, 0% of those before"
    assert strict.cut(strict.pipeline, "r2", 5.0) == second
    assert strict.versions.get("parcels", 2) == second
    assert strict.versions.get("parcels", 0) == first  # the newest that is available
    assert len(strict.rows(second)) == 4
    assert announced(strict) == [1]

    released = strict.release("parcels", 2, "r3", "ann", "zones are gone for good")
    assert (released.state, released.error) == (State.AVAILABLE, "")
    assert strict.release("parcels", 2, "r3", "ann", "again") == released
    assert strict.versions.get("parcels", 0) == released
    assert announced(strict) == [1, 2]
    assert strict.events(DATASETS)[1].cause == "r2"  # what it was cut for
    assert len(strict.events(DATASETS)[1].data.dataset.objects) == len(
        strict.versions.parts(released)
    )
    [entry] = strict.versions.audit("parcels", 2)
    assert (entry.action, entry.actor, entry.reason) == (
        "RELEASED",
        "ann",
        "zones are gone for good",
    )
    # What was released is what the next one is held against: half without zone.
    strict.send(0, *without_zone(make_record, "e", "f"))
    assert strict.cut(strict.pipeline, "r4", 5.0).state is State.AVAILABLE


def test_the_next_good_version_takes_the_place_of_one_in_quarantine(
    strict: Any, make_record: Make
) -> None:
    strict.send(0, *map(make_record, "ab"))
    strict.cut(strict.pipeline, "r1", 5.0)
    strict.send(0, *without_zone(make_record, "c", "d"))
    strict.cut(strict.pipeline, "r2", 5.0)
    strict.send(0, *without_zone(make_record, *"lmnopqr"), *map(make_record, "f"))
    third = strict.cut(strict.pipeline, "r3", 5.0)
    assert third.state is State.QUARANTINED  # nine of the ten that came since
    strict.send(0, *map(make_record, "ghijk"))
    fourth = strict.cut(strict.pipeline, "r4", 5.0)
    assert (fourth.state, len(strict.rows(fourth))) == (State.AVAILABLE, 17)
    assert announced(strict) == [1, 4]
    with pytest.raises(EverloopError) as caught:
        strict.release("parcels", 2, "r5", "ann", "late")
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "SUPERSEDED")


def test_a_first_version_with_too_few_rows_waits(strict: Any, make_record: Make) -> None:
    strict.send(0, make_record("a"))
    assert strict.cut(strict.pipeline, "r1", 5.0).state is State.QUARANTINED
    strict.send(0, make_record("b"))
    assert strict.cut(strict.pipeline, "r2", 5.0).state is State.AVAILABLE


def test_what_is_not_in_quarantine_cannot_be_released(strict: Any, make_record: Make) -> None:
    strict.send(0, *map(make_record, "ab"))
    strict.cut(strict.pipeline, "r1", 5.0)
    for number, reason in ((1, "NOT_QUARANTINED"), (2, "DATASET_VERSION_NOT_FOUND"), (0, None)):
        with pytest.raises(EverloopError) as caught:
            strict.release("parcels", number, "r", "ann", "")
        assert reason in (None, caught.value.reason)
    assert announced(strict) == [1]


def test_a_request_id_that_did_something_else_releases_nothing(
    strict: Any, make_record: Make
) -> None:
    strict.send(0, make_record("a"))
    strict.cut(strict.pipeline, "r1", 5.0)
    strict.release("parcels", 1, "r2", "ann", "why")
    strict.send(0, *map(make_record, "bc"))
    strict.erase(strict.pipeline, Entity(["a"]), "e1", "ann", "why", 5.0)
    strict.send(0, *without_zone(make_record, *"defgh"))
    held = strict.cut(strict.pipeline, "r3", 5.0)
    assert held.state is State.QUARANTINED
    for reused in ("r2", "e1"):
        with pytest.raises(EverloopError) as caught:
            strict.release("parcels", held.number, reused, "ann", "why")
        assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")
        assert strict.versions.get("parcels", held.number).state is State.QUARANTINED
    before = announced(strict)
    assert strict.release("parcels", held.number, "r4", "ann", "").state is State.AVAILABLE
    assert announced(strict) == [*before, held.number]


def test_two_people_at_once_release_a_version_once(
    strict: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict.send(0, make_record("a"))
    strict.cut(strict.pipeline, "r1", 5.0)
    real = quarantine._profile_of
    people: list[Future[Any]] = []

    def decided(*arguments: Any) -> Any:
        """Lets the second one begin when the first has seen that the version is held, and has not released it."""
        monkeypatch.setattr(quarantine, "_profile_of", real)
        people.append(pool.submit(strict.release, "parcels", 1, "r3", "bob", "second"))
        with contextlib.suppress(TimeoutError):
            people[0].result(1.0)  # as long as it does not wait for us
        return real(*arguments)

    monkeypatch.setattr(quarantine, "_profile_of", decided)
    with ThreadPoolExecutor(1) as pool:
        strict.release("parcels", 1, "r2", "ann", "first")
        [second] = people
        with pytest.raises(EverloopError) as caught:
            second.result(30.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "NOT_QUARANTINED")
    assert announced(strict) == [1]
    assert [entry.actor for entry in strict.versions.audit("parcels", 1)] == ["ann"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_around_the_release_announces_once(
    strict: Any, make_record: Make, crash: Any, when: str
) -> None:
    strict.send(0, make_record("a"))
    strict.cut(strict.pipeline, "r1", 5.0)
    with pytest.raises(crash(strict.quarantine, "release", when)):
        strict.release("parcels", 1, "r2", "ann", "")
    strict.restart()
    assert strict.release("parcels", 1, "r2", "ann", "").state is State.AVAILABLE
    assert announced(strict) == [1]
    assert len(strict.versions.audit("parcels", 1)) == 1
