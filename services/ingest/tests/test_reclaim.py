"""What versions have replaced is deleted after its time, and no version is changed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

Make = Callable[..., bytes]
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=1)


def objects(world: Any, kind: str) -> list[str]:
    folder = world.bucket / "parcels" / kind
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def test_what_versions_have_replaced_goes_after_its_time(world: Any, make_record: Make) -> None:
    waiting = b'{"parcel": "nobody", "lost": true}'
    world.send(0, make_record("a"), waiting)
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(0, b'{"parcel": "a", "lost": true}', b'{"parcel": "none", "lost": true}')
    second = world.cut(world.pipeline, "r2", 5.0)
    world.send(1, make_record("not cut yet"))
    world.settle_all()
    assert [len(objects(world, kind)) for kind in ("shards", "parts", "labels")] == [3, 2, 2]
    scheduler = world.scheduler()  # it keeps them for seven days
    scheduler.tidy("parcels", NOW + timedelta(days=6))
    assert [len(objects(world, kind)) for kind in ("shards", "parts", "labels")] == [3, 2, 2]
    books = world.settlements.books("parcels")
    for _ in range(2):
        scheduler.tidy("parcels", NOW + timedelta(days=8))
        assert [len(objects(world, kind)) for kind in ("shards", "parts", "labels")] == [1, 1, 1]
    assert world.settlements.books("parcels") == books
    # The versions themselves are whole, and the next one knows what waits.
    assert [row["lost"] for row in world.rows(first) + world.rows(second)] == [None, True]
    world.send(0, make_record("nobody"))
    third = world.cut(world.pipeline, "r3", 5.0)
    assert [(row["parcel"], row["lost"]) for row in world.rows(third)] == [
        ("a", True),
        ("nobody", True),
        ("not cut yet", None),
    ]
    assert third.shards == 4


def test_a_crash_while_objects_are_deleted_is_made_good(
    world: Any, make_record: Make, crash: Any
) -> None:
    world.send(0, make_record("a"))
    world.cut(world.pipeline, "r1", 5.0)
    with pytest.raises(crash(world.upkeep, "reclaimed", "before")):
        world.reclaim("parcels", LATER)
    world.restart()
    world.reclaim("parcels", LATER)
    assert objects(world, "shards") == []
    assert not world.upkeep.reclaimable("parcels", LATER, 100)
    world.send(0, make_record("b"))
    assert world.cut(world.pipeline, "r2", 5.0).rows.rows == 2


def test_labels_that_wait_again_are_not_deleted_with_those_of_before(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(0, make_record("a"), b'{"parcel": "late", "lost": true}')
    world.cut(world.pipeline, "r1", 5.0)
    world.send(0, b'{"parcel": "soon", "lost": true}')
    world.cut(world.pipeline, "r2", 5.0)
    real = world.files.delete

    def overtaken(keys: Any) -> None:
        monkeypatch.setattr(world.files, "delete", real)
        world.send(0, make_record("soon"))
        world.cut(world.pipeline, "r3", 5.0)  # what waits now is what waited at the first version
        real(keys)

    monkeypatch.setattr(world.files, "delete", overtaken)
    world.reclaim("parcels", LATER)
    world.send(0, make_record("late"))
    version = world.cut(world.pipeline, "r4", 5.0)
    assert {row["parcel"]: row["lost"] for row in world.rows(version)}["late"] is True
