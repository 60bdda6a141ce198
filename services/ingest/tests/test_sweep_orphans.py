"""What a crash between upload and commit leaves in the data bucket is deleted, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.settlements import Settlements

Make = Callable[..., bytes]
GRACE = timedelta(hours=24)


def sweep(world: Any, later: timedelta) -> None:
    world.scheduler().sweep(datetime.now(UTC) + later)


def objects(world: Any) -> set[str]:
    return {
        str(path.relative_to(world.bucket)) for path in world.bucket.rglob("*") if path.is_file()
    }


def test_an_upload_without_its_row_is_swept_when_its_grace_is_over(
    world: Any, crash: Any, make_record: Make
) -> None:
    world.send(0, make_record("a"), b"broken")
    with pytest.raises(crash(Settlements, "settle", "before")):
        world.settle(world.batch(0))
    orphans = objects(world)
    assert len(orphans) == 2  # rows and dead letters
    world.restart()
    world.send(0, make_record("b"))  # the batch is longer now: its objects have other paths
    world.settle_all()
    named = objects(world) - orphans
    assert len(named) == 2

    sweep(world, GRACE - timedelta(minutes=1))
    assert objects(world) == orphans | named
    sweep(world, GRACE + timedelta(minutes=1))
    assert objects(world) == named
    assert [row["parcel"] for row in world.rows(world.cut(world.pipeline, "r1", 10.0))] == [
        *("a", "b")
    ]


def test_what_a_killed_cut_has_stored_is_swept_once_it_is_cut_otherwise(
    world: Any, crash: Any, make_record: Make
) -> None:
    """The parts of a version that failed, since a shard of it was lost after they were stored."""
    world.send(0, make_record("a"))
    world.send(1, make_record("b"))
    world.settle_all()
    with pytest.raises(crash(Cuts, "complete", "before")):
        world.cut(world.pipeline, "r1", 10.0)
    states = {key for key in objects(world) if "/parts/" in key}
    assert states
    [lost] = [key for key in objects(world) if "/shards/" in key and "/1/" in key]
    (world.bucket / lost).unlink()
    world.restart()
    version = world.cut(world.pipeline, "r1", 10.0)
    assert [row["parcel"] for row in world.rows(version)] == ["a"]
    sweep(world, 2 * GRACE)
    assert not objects(world) & states
    world.send(0, make_record("c"))
    assert world.cut(world.pipeline, "r2", 10.0).rows.rows == 2


def test_everything_that_a_row_names_stays(world: Any, make_record: Make) -> None:
    world.send(0, make_record("a"), b"broken", b'{"parcel": "waits", "lost": true}')
    world.cut(world.pipeline, "r1", 10.0)
    world.send(1, make_record("b"))
    world.settle_all()
    world.files.put("parcels/elsewhere/note", b"somebody's own")
    world.files.put("letters/shards/of-another-pipeline", b"")
    before = objects(world)
    assert {key.split("/")[1] for key in before} == {
        *("shards", "dead-letters", "parts", "labels", "elsewhere")
    }
    sweep(world, 2 * GRACE)
    assert objects(world) == before
    assert world.cut(world.pipeline, "r2", 10.0).rows.rows == 2
