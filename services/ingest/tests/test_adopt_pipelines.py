"""Schemas that change: which may be served, and that what was stored under an earlier one is still read."""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adopt_pipelines import (
    StoredSchema,
    adopt_schemas,
    check_record_sizes,
    misfits,
)
from everloop_ingest.app import clear_work
from everloop_ingest.validate import arrow_schema
from everloop_runtime.errors import EverloopError, Kind

NOW = datetime(2026, 3, 1, tzinfo=UTC)
Change = Callable[[dict[str, Any]], Any]


def pipeline(
    spec: dict[str, Any], version: int = 1, change: Change = lambda spec: None
) -> Pipeline:
    """The pipeline with a change and a schema version."""
    changed = copy.deepcopy(spec)
    changed["schema"]["version"] = version
    change(changed)
    return Pipeline.model_validate(changed)


def fields(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = spec["schema"]["fields"]
    return found


def retype(name: str, kind: str) -> Change:
    return lambda spec: fields(spec)[name].update(type=kind)


def add(name: str, **field: Any) -> Change:
    return lambda spec: fields(spec).update({name: field})


def served(*pipelines: Pipeline) -> dict[int, StoredSchema]:
    return {
        item.schema_.version: StoredSchema(schema_=item.schema_, target=item.target.field)
        for item in pipelines
    }


def serve(world: Any, served: Pipeline) -> None:
    """A new process with a changed pipeline."""
    world.pipeline = served
    world.restart()
    adopt_schemas({"parcels": served}, world.schemas, NOW)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: None,
        add("colour", type="string", nullable=True, categories=["red"]),
        lambda spec: fields(spec)["weight"].update(description="pounds"),
        lambda spec: spec.update(partitions=9),
    ],
)
def test_a_further_nullable_field_needs_no_new_version(
    spec: dict[str, Any], change: Change
) -> None:
    assert not list(misfits(pipeline(spec, 1, change), served(pipeline(spec))))


CHANGES: list[tuple[Change, str]] = [
    (lambda spec: fields(spec).pop("zone"), "schema.fields.zone: is gone"),
    (add("colour", type="string"), "schema.fields.colour: is new and not nullable"),
    (
        lambda spec: fields(spec)["zone"].update(nullable=False),
        "schema.fields.zone.nullable: is False, was True",
    ),
    (
        lambda spec: fields(spec)["weight"].update(nullable=True),
        "schema.fields.weight.nullable: is True, was False",
    ),
    (
        lambda spec: fields(spec)["weight"].update(max=9),
        "schema.fields.weight.max: is 9.0, was 50.0",
    ),
    (
        lambda spec: fields(spec)["zone"].update(categories=["A"]),
        "schema.fields.zone.categories: is not what it was",
    ),
    (
        lambda spec: spec["schema"].update(freshness={"max_age": "1h"}),
        "schema.freshness: is not what it was",
    ),
    (
        lambda spec: spec["schema"].update(rules=[{"name": "r", "check": "weight > 1"}]),
        "schema.rules: is not what it was",
    ),
    (
        lambda spec: (
            add("damaged", type="bool", nullable=True)(spec),
            spec["target"].update(field="damaged"),
        ),
        "target.field: is damaged, was lost",
    ),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_anything_else_takes_a_new_version(spec: dict[str, Any], change: Change, said: str) -> None:
    known = served(pipeline(spec))
    assert f"{said}; set schema.version to 2" in list(misfits(pipeline(spec, 1, change), known))
    assert not list(misfits(pipeline(spec, 2, change), known))
    assert not list(misfits(pipeline(spec, 5, change), known))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            retype("weight", "int"),
            "schema.fields.weight: is of type int, was float in version 1: only int becomes float;"
            " give what is of another type another name",
        ),
        (
            lambda spec: (
                add("sender", type="string")(spec),
                spec["schema"].update(id="sender"),
            ),
            "schema.id: is sender, was parcel in version 1: what names and orders the rows of a pipeline"
            " stays; take a new pipeline",
        ),
    ],
)
def test_what_stored_rows_cannot_be_read_as_takes_a_new_name(
    spec: dict[str, Any], change: Change, said: str
) -> None:
    assert list(misfits(pipeline(spec, 2, change), served(pipeline(spec)))) == [said]


def test_a_field_that_comes_back_must_fit_what_it_was_long_ago(spec: dict[str, Any]) -> None:
    first = pipeline(spec, 1, add("size", type="string", nullable=True))
    second = pipeline(spec, 2)
    [said] = misfits(
        pipeline(spec, 2, add("size", type="int", nullable=True)), served(first, second)
    )
    assert "schema.fields.size: is of type int, was string in version 1" in said
    assert not list(
        misfits(pipeline(spec, 2, add("size", type="string", nullable=True)), served(first, second))
    )


def test_an_older_version_is_no_way_back(spec: dict[str, Any]) -> None:
    [said] = misfits(pipeline(spec, 1), served(pipeline(spec, 1), pipeline(spec, 3)))
    assert said == (
        "schema.version: 1 is older than 3, which data came under; to go back, give the earlier schema the number 4"
    )


def test_what_was_served_is_remembered_over_restarts(world: Any, spec: dict[str, Any]) -> None:
    def adopt(*pipelines: Pipeline) -> None:
        adopt_schemas({item.name: item for item in pipelines}, world.schemas, NOW)

    fresh = {"freshness": {"max_age": "90m"}, "rules": [{"name": "r", "check": "weight > 1"}]}
    first = pipeline(spec, 1, lambda spec: spec["schema"].update(fresh))
    adopt(first)
    world.restart()
    adopt(first)
    wider = pipeline(
        spec,
        1,
        lambda spec: (
            spec["schema"].update(fresh),
            add("colour", type="string", nullable=True)(spec),
        ),
    )
    adopt(wider)
    other = pipeline(spec, 1, lambda spec: spec.update(pipeline="letters"))
    with pytest.raises(EverloopError) as caught:  # the added field is there to stay
        adopt(first, other)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "SCHEMA_CHANGED")
    assert str(caught.value) == ("parcels: schema.fields.colour: is gone; set schema.version to 2")
    assert world.schemas.known("letters") == {}
    adopt(pipeline(spec, 2), other)
    assert set(world.schemas.known("parcels")) == {1, 2}


@given(st.sampled_from(CHANGES), st.sampled_from(CHANGES), st.integers(1, 3))
def test_a_schema_always_follows_itself(
    spec: dict[str, Any], one: tuple[Change, str], other: tuple[Change, str], version: int
) -> None:
    def both(changed: dict[str, Any]) -> None:
        for change, _ in dict.fromkeys((one, other)):
            if change is not CHANGES[0][0] or "zone" in fields(changed):
                try:
                    change(changed)
                except KeyError:  # the other one has taken the field away
                    continue

    made = pipeline(spec, version, both)
    again = StoredSchema.model_validate_json(
        StoredSchema(schema_=made.schema_, target=made.target.field).model_dump_json()
    )
    assert again.schema_ == made.schema_
    assert not list(misfits(made, {version: again}))


@pytest.mark.parametrize("with_new", [False, True])
def test_versions_hold_what_was_stored_under_every_schema(
    world: Any, spec: dict[str, Any], make_record: Callable[..., bytes], with_new: bool
) -> None:
    def whole(changed: dict[str, Any]) -> None:
        fields(changed)["weight"].update(type="int")

    def widened(changed: dict[str, Any]) -> None:
        del fields(changed)["zone"]  # gone
        fields(changed)["colour"] = {"type": "string"}  # new and wanted
        fields(changed)["stamp"] = {"type": "timestamp", "nullable": True}

    serve(world, pipeline(spec, 1, whole))
    world.send(0, make_record("a", weight=2**53 // 2**50), make_record("b", weight=2, lost=True))
    first = world.cut(world.pipeline, "r1", 5.0)
    world.send(1, make_record("c", weight=3))
    world.settle_all()
    serve(world, pipeline(spec, 2, widened))
    if with_new:
        late = orjson.dumps({"parcel": "a", "lost": False})
        world.send(2, make_record("d", weight=0.5, zone=..., colour="red"), late)
    second = world.cut(world.pipeline, "r2", 5.0)
    assert [row["parcel"] for row in world.rows(first)] == ["a", "b"]
    expected = {
        "a": (8.0, None, False if with_new else None),
        "b": (2.0, None, True),
        "c": (3.0, None, None),
    } | ({"d": (0.5, "red", None)} if with_new else {})
    rows = world.rows(second)
    assert {row["parcel"]: (row["weight"], row["colour"], row["lost"]) for row in rows} == expected
    assert {type(row["weight"]) for row in rows} == {float}
    assert set(rows[0]) == {"parcel", "sent", "weight", "colour", "stamp", "lost"}
    # What still comes in the old shape is told.
    world.send(0, make_record("e", colour="red"))
    world.settle_all()
    [(_, headers)] = world.dead_letters()
    assert (headers["everloop-reason"], headers["everloop-field"]) == ("UNKNOWN_FIELD", "zone")


def test_a_change_of_the_schema_writes_the_parts_anew_that_a_cut_would_leave(
    world: Any, spec: dict[str, Any], make_record: Callable[..., bytes]
) -> None:
    serve(world, pipeline(spec, 1, retype("weight", "int")))
    world.send(0, *(make_record(f"p{n:02d}", weight=n) for n in range(12)))
    world.cut(world.pipeline, "r1", 5.0)
    serve(world, pipeline(spec, 2, add("colour", type="string", nullable=True)))
    world.send(0, make_record("p99", weight=0.5, colour="red"))
    version = world.cut(world.pipeline, "r2", 5.0)
    contents = [world.repository.content[md5] for md5 in world.repository.tags["parcels/v2"]]
    assert len(contents) == 4
    schemas = [pq.read_schema(pa.BufferReader(content)) for content in contents]
    assert all(schema.equals(arrow_schema(world.pipeline)) for schema in schemas)
    found = {row["parcel"]: (row["weight"], row["colour"]) for row in world.rows(version)}
    assert found == {f"p{n:02d}": (float(n), None) for n in range(12)} | {"p99": (0.5, "red")}


def test_another_target_takes_no_label_of_the_one_before(
    world: Any, spec: dict[str, Any], make_record: Callable[..., bytes]
) -> None:
    damaged = add("damaged", type="bool", nullable=True)
    serve(world, pipeline(spec, 1, damaged))
    world.send(
        0,
        make_record("a", lost=True),
        make_record("b", damaged=True),
        make_record("c", damaged=False),
        b'{"parcel": "z", "lost": true}',
        # A part that the cut below has no row for.
        *(make_record(f"d{n}", sent="2026-02-01T00:00:00Z", damaged=True) for n in range(4)),
    )
    assert world.cut(world.pipeline, "r1", 5.0).rows.labelled_rows == 1

    def retargeted(changed: dict[str, Any]) -> None:
        damaged(changed)
        changed["target"].update(field="damaged")

    serve(world, pipeline(spec, 2, retargeted))
    late = b'{"parcel": "a", "damaged": true}'
    world.send(0, make_record("b", weight=2), make_record("z"), late)
    version = world.cut(world.pipeline, "r2", 5.0)
    found = {
        row["parcel"]: (row["weight"], row["lost"], row["damaged"]) for row in world.rows(version)
    }
    assert found == {
        "a": (1.0, True, True),
        "b": (2.0, None, True),
        "c": (1.0, None, False),
        "z": (1.0, None, None),
    } | {f"d{n}": (1.0, None, True) for n in range(4)}
    assert version.rows.labelled_rows == 7


def test_small_shards_of_two_schemas_are_put_together(
    world: Any, spec: dict[str, Any], make_record: Callable[..., bytes]
) -> None:
    whole = pipeline(spec, 1, lambda spec: fields(spec)["weight"].update(type="int", max=2**60))
    serve(world, whole)
    for name, weight in (("a", 2**53 + 1), ("b", 2)):
        world.send(0, make_record(name, weight=weight))
        world.settle_all()
    serve(world, pipeline(spec, 2))
    world.send(0, make_record("c", weight=0.5))
    world.settle_all()
    world.compact("parcels")
    assert len(list((world.bucket / "parcels" / "shards" / "together").iterdir())) == 1
    version = world.cut(world.pipeline, "r1", 5.0)
    found = {row["parcel"]: row["weight"] for row in world.rows(version)}
    assert found == {"a": float(2**53), "b": 2.0, "c": 0.5}


def test_a_pipeline_cannot_ask_for_larger_records_than_the_service_takes(
    spec: dict[str, Any],
) -> None:
    large = pipeline(spec, 1, lambda spec: spec["schema"].update(max_record_bytes=5000))
    check_record_sizes({"parcels": large}, 5000)
    with pytest.raises(EverloopError) as caught:
        check_record_sizes({"parcels": large}, 4999)
    assert "parcels: schema.max_record_bytes: 5000 is more than this service takes, 4999" in str(
        caught.value
    )


def test_what_a_killed_process_left_is_cleared_at_start(tmp_path: Path) -> None:
    for name in ("cut-x1/parts", "letters-x2", "index/parcels"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file.parquet").touch()
    clear_work(tmp_path)
    clear_work(tmp_path / "not-there")
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    assert (tmp_path / "index" / "parcels" / "file.parquet").exists()
