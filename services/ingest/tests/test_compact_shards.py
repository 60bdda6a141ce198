"""Putting small shards together changes no version."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

Make = Callable[..., bytes]
NOW = datetime.now(UTC)


def objects(world: Any, kind: str) -> list[str]:
    folder = world.bucket / "parcels" / kind
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.parquet"))


def small_shards(world: Any, *values: bytes) -> None:
    for value in values:
        world.send(0, value)
        world.settle_all()


def test_small_shards_are_put_together(world: Any, make_record: Make) -> None:
    small_shards(world, *(make_record(name) for name in "ab"))
    world.compact("parcels")
    assert len(objects(world, "shards")) == 2  # too few yet
    small_shards(world, make_record("c"), make_record("d"), b'{"parcel": "a", "lost": true}')
    world.compact("parcels")
    world.compact("parcels")
    [*rest, together] = objects(world, "shards")
    assert (len(rest), together.split("/")[0]) == (2, "together")
    books = world.settlements.books("parcels")
    version = world.cut(world.pipeline, "r1", 5.0)
    assert (version.shards, world.settlements.books("parcels")) == (5, books)
    assert {row["parcel"]: row["lost"] for row in world.rows(version)} == {
        "a": True,
        **dict.fromkeys("bcd"),
    }


@pytest.mark.parametrize(
    ("owner", "method", "when"),
    [
        ("files", "put", "after"),
        ("upkeep", "put_together", "before"),
        ("upkeep", "put_together", "after"),
        ("files", "delete", "after"),
    ],
)
def test_a_crash_while_shards_are_put_together_loses_nothing(
    world: Any, make_record: Make, crash: Any, owner: str, method: str, when: str
) -> None:
    small_shards(world, *(make_record(name) for name in "abc"))
    with pytest.raises(crash(getattr(world, owner), method, when)):
        world.compact("parcels")
    world.restart()
    world.compact("parcels")
    version = world.cut(world.pipeline, "r1", 5.0)
    assert [row["parcel"] for row in world.rows(version)] == ["a", "b", "c"]


def test_shards_that_a_version_has_taken_stay_as_they_are(
    world: Any, make_record: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shards(world, *(make_record(name) for name in "abc"))
    real = world.files.put

    def overtaken(*arguments: Any) -> None:
        monkeypatch.setattr(world.files, "put", real)
        real(*arguments)
        world.begin("parcels", "r1", NOW)

    monkeypatch.setattr(world.files, "put", overtaken)
    world.compact("parcels")
    version = world.cut(world.pipeline, "r1", 5.0)
    assert [row["parcel"] for row in world.rows(version)] == ["a", "b", "c"]
