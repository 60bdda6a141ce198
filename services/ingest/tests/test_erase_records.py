"""The right to erasure: nothing of an entity is left where later versions come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from everloop_contracts.events import DATASETS
from everloop_contracts.stubs.everloop.ingest.v1.record_pb2 import Record
from everloop_ingest.adapters.store.erasures import AUDIT, ERASURES
from everloop_ingest.dead_letters import Wanted
from everloop_ingest.domain import Audit, State
from everloop_ingest.erase_records import Entity
from everloop_ingest.formats import CONTENT_TYPE, PROTOBUF
from everloop_runtime.errors import EverloopError, Kind

Make = Callable[..., bytes]


def rows(world: Any, version: Any) -> list[tuple[str, float, bool | None]]:
    return [(row["parcel"], row["weight"], row["lost"]) for row in world.rows(version)]


def test_an_entity_s_records_and_labels_are_gone_from_all_that_comes(
    world: Any, make_record: Make
) -> None:
    world.send(
        0, *(make_record(f"p{n}", weight=n) for n in range(9)), b'{"parcel": "p4", "lost": true}'
    )
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(1, make_record("p4", weight=44), b'{"parcel": "waits", "lost": true}')
    entity = Entity(["p4", "waits"])
    done = world.erase(world.pipeline, entity, "e1", "ann", "request 17", 5.0)
    assert (done.number, done.state) == (3, State.AVAILABLE)
    left = [(f"p{n}", float(n), None) for n in range(9) if n != 4]
    assert rows(world, done) == left
    assert world.erase(world.pipeline, entity, "e1", "ann", "again", 5.0) == done
    [entry] = world.versions.audit("parcels", 3)
    assert (entry.action, entry.actor, entry.reason, entry.request_id) == (
        *("ERASED", "ann", "request 17", "e1"),
    )
    assert [event.data.dataset.version for event in world.events(DATASETS)] == [1, 2, 3]
    assert not list((world.bucket / "parcels" / "shards").rglob("*.parquet"))
    assert not list((world.bucket / "parcels" / "labels").rglob("*.parquet"))
    # A later record is a new one: no label of before comes back.
    world.send(0, make_record("p4", weight=5), make_record("waits", weight=6))
    fourth = world.cut(world.pipeline, "r4", 5.0)
    assert rows(world, fourth) == sorted([*left, ("p4", 5.0, None), ("waits", 6.0, None)])
    assert len(rows(world, first)) == 9  # what was tagged is not changed


def test_records_are_found_by_the_value_of_a_field(world: Any, make_record: Make) -> None:
    zones = "AABBA"
    world.send(0, *(make_record(f"p{n}", zone=zone, weight=n) for n, zone in enumerate(zones)))
    done = world.erase(
        world.pipeline, Entity(field="zone", value="A"), "e1", "ann", "request 17", 5.0
    )
    assert [name for name, *_ in rows(world, done)] == ["p2", "p3"]
    with pytest.raises(EverloopError) as caught:
        world.erase(world.pipeline, Entity(field="zone", value="C"), "e2", "ann", "", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, "RECORDS_NOT_FOUND")


@pytest.mark.parametrize(
    "entity",
    [Entity(), Entity(["a"], "zone", "A"), Entity(field="weight", value="1"), Entity(field="x")],
)
def test_an_entity_must_be_named_in_one_way(world: Any, entity: Entity) -> None:
    with pytest.raises(EverloopError) as caught:
        world.erase(world.pipeline, entity, "e1", "ann", "", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.INVALID, "INVALID_ENTITY")


@pytest.mark.parametrize(
    ("owner", "method", "when"),
    [
        ("erasures", "ask", "before"),
        ("erasures", "ask", "after"),
        ("repository", "publish", "after"),
        ("cuts", "complete", "after"),
        ("files", "delete", "after"),
    ],
)
@pytest.mark.parametrize("resume", ["repeat", "scheduler"])
def test_a_crash_at_any_step_is_made_good(
    world: Any, make_record: Make, crash: Any, owner: str, method: str, when: str, resume: str
) -> None:
    world.send(0, *(make_record(name) for name in "abc"))
    world.cut(world.pipeline, "r1", 5.0)
    arguments = (world.pipeline, Entity(["b"]), "e1", "ann", "why", 5.0)
    with pytest.raises(crash(getattr(world, owner), method, when)):
        world.erase(*arguments)
    world.restart()
    if resume == "scheduler" and (method, when) != ("ask", "before"):
        scheduler = world.scheduler()
        world.cut.finish()
        scheduler.look(world.pipeline, datetime.now(UTC))
        newest = world.versions.get("parcels", 0)
        assert [name for name, *_ in rows(world, newest)] == ["a", "c"]
        assert len(world.versions.audit("parcels", newest.number)) == 1
    done = world.erase(*arguments)
    assert [name for name, *_ in rows(world, done)] == ["a", "c"]
    assert len(world.versions.audit("parcels", done.number)) == 1
    assert not list((world.bucket / "parcels" / "shards").rglob("*.parquet"))


def test_a_request_id_that_cut_or_released_a_version_erases_nothing(
    world: Any, make_record: Make
) -> None:
    world.send(0, *(make_record(name) for name in "abc"))
    version = world.cut(world.pipeline, "cut", 5.0)
    with world.database.unit_of_work() as work:
        entry = Audit("parcels", "released", 1, "RELEASED", "ann", "why", datetime.now(UTC))
        work.connection.execute(AUDIT.insert().values(asdict(entry)))
    for reused in ("cut", "released"):
        with pytest.raises(EverloopError) as caught:
            world.erase(world.pipeline, Entity(["b"]), reused, "ann", "why", 5.0)
        assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")
    assert [name for name, *_ in rows(world, version)] == ["a", "b", "c"]
    world.send(0, make_record("d"))
    assert world.cut(world.pipeline, "next", 5.0).number == version.number + 1


@pytest.mark.parametrize(
    "other",
    [Entity(["a"]), Entity(["a", "b"]), Entity(field="zone", value="B")],
)
def test_a_request_id_that_erased_another_entity_erases_nothing(
    world: Any, make_record: Make, other: Entity
) -> None:
    world.send(0, *(make_record(name) for name in "abc"), make_record("d", zone="B"))
    done = world.erase(world.pipeline, Entity(["b"]), "e1", "ann", "why", 5.0)
    with pytest.raises(EverloopError) as caught:
        world.erase(world.pipeline, other, "e1", "ann", "why", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")
    assert world.erase(world.pipeline, Entity(["b", "b"]), "e1", "bob", "again", 5.0) == done
    again = world.erase(world.pipeline, other, "e2", "ann", "why", 5.0)
    assert again.number > done.number


def test_a_request_of_before_entities_were_noted_is_not_taken_for_any(
    world: Any, make_record: Make
) -> None:
    world.send(0, *(make_record(name) for name in "abc"))
    world.erase(world.pipeline, Entity(["b"]), "e1", "ann", "why", 5.0)
    with world.database.unit_of_work() as work:
        work.connection.execute(ERASURES.update().values(digest=None))
    with pytest.raises(EverloopError) as caught:
        world.erase(world.pipeline, Entity(["a"]), "e1", "ann", "why", 5.0)
    assert caught.value.reason == "REQUEST_ID_REUSED"


def test_of_two_entities_that_race_with_one_request_id_the_second_is_a_conflict(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(0, *(make_record(name) for name in "abc"))
    real = world.erasures.ask

    def slower(*arguments: Any) -> Any:
        monkeypatch.setattr(world.erasures, "ask", real)
        world.erase(world.pipeline, Entity(["b"]), "e1", "bob", "why", 5.0)
        return real(*arguments)

    monkeypatch.setattr(world.erasures, "ask", slower)
    with pytest.raises(EverloopError) as caught:
        world.erase(world.pipeline, Entity(["a"]), "e1", "ann", "why", 5.0)
    assert (caught.value.kind, caught.value.reason) == (Kind.CONFLICT, "REQUEST_ID_REUSED")
    newest = world.versions.get("parcels", 0)
    assert [name for name, *_ in rows(world, newest)] == ["a", "c"]


def test_the_books_forget_the_ids_as_well(world: Any, make_record: Make) -> None:
    names = [f"somebody-{n}" for n in range(6)]
    world.send(0, *(make_record(name) for name in names))
    world.erase(world.pipeline, Entity(names[:5]), "e1", "ann", "why", 5.0)
    world.database.engine.dispose()
    assert world.cuts.erased(world.versions.get("parcels", 2)) == []
    with world.database.read() as connection:
        held = connection.exec_driver_sql("SELECT first_record_id FROM parts").scalars().all()
    assert set(held) <= {"", names[5]}


def test_dead_letters_of_the_entity_go_too(world: Any, make_record: Make) -> None:
    world.send(0, make_record("p1"), make_record("p2", zone="B"))
    bodies = []
    for name in ("p1", "p12"):
        message = Record()
        message.fields["parcel"].string_value = name
        bodies.append(message.SerializeToString())
        world.send(0, bodies[-1])
        world.topic[0][-1] = replace(world.topic[0][-1], headers=[(CONTENT_TYPE, PROTOBUF)])
    world.send(0, make_record("p1", weight=-1), make_record("p11", weight=-2))
    world.send(1, b'{"parcel": "p1", ', b'{"parcel": "p2", ')
    world.send(2, make_record("p1", weight=-3), make_record("p3", weight=-4, zone="B"))

    def left() -> list[bytes]:
        found, _ = world.letters.page(world.pipeline, Wanted(), "", 100)
        return sorted(world.letters.get(world.pipeline, kept.id).letter.value for kept in found)

    world.settle_all()
    assert len(left()) == 8
    world.erase(world.pipeline, Entity(["p1"]), "e1", "ann", "why", 5.0)
    beside = [
        bodies[1],
        make_record("p11", weight=-2),
        b'{"parcel": "p2", ',
        make_record("p3", weight=-4, zone="B"),
    ]
    assert left() == sorted(beside)
    world.erase(world.pipeline, Entity(field="zone", value="B"), "e2", "ann", "why", 5.0)
    assert left() == sorted(beside[:2])
    files = list((world.bucket / "parcels" / "dead-letters").rglob("*.parquet"))
    assert len(files) == 1
