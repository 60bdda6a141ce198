"""The rows of a version, against a model of the rule in plain Python."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import shards
from everloop_ingest.build_rows import build_rows
from everloop_ingest.validate import Validator, arrow_schema

Event = tuple[int, str, bool, float, bool | None]
"""Kafka timestamp, id, whether a label alone, weight, label."""

events = st.tuples(
    st.integers(0, 3),
    st.sampled_from("abc"),
    st.booleans(),
    st.floats(0, 50),
    st.none() | st.booleans(),
)


def encoded(pipeline: Pipeline, partition: int, chosen: list[Event]) -> bytes:
    validator = Validator(pipeline, 4096)
    messages = []
    for offset, (timestamp, name, alone, weight, label) in enumerate(chosen):
        body: dict[str, Any] = {"parcel": name, "lost": bool(label) if alone else label}
        if not alone:
            body |= {"sent": f"2026-03-01T12:00:{ord(name) % 60}Z", "weight": weight}
        messages.append(
            SimpleNamespace(
                offset=offset, timestamp=timestamp, key=None, value=orjson.dumps(body), headers=[]
            )
        )
    validated = validator([message.value for message in messages])
    assert not validated.rejections
    return shards.encode(validated, messages, partition)


def modelled(partitions: list[list[Event]]) -> dict[str, tuple[float, bool | None]]:
    ordered = sorted(
        (event[0], number, offset, event)
        for number, chosen in enumerate(partitions)
        for offset, event in enumerate(chosen)
    )
    rows: dict[str, float] = {}
    labels: dict[str, bool] = {}
    for *_, (_, name, alone, weight, label) in ordered:
        if alone:
            labels[name] = bool(label)
            continue
        rows[name] = weight
        if label is not None:
            labels[name] = label
    return {name: (weight, labels.get(name)) for name, weight in rows.items()}


def has_a_record(partitions: list[list[Event]]) -> bool:
    return any(not alone for chosen in partitions for _, _, alone, _, _ in chosen)


@settings(max_examples=60)
@given(st.lists(st.lists(events, max_size=8), min_size=1, max_size=3).filter(has_a_record))
def test_the_last_event_and_the_last_known_label_of_an_id_win(
    pipeline: Pipeline, partitions: list[list[Event]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = []
        for number, chosen in enumerate(partitions):
            paths.append(folder / f"{number}.parquet")
            paths[-1].write_bytes(encoded(pipeline, number, chosen))
        first = build_rows(pipeline, paths, folder / "1", 2**28, 2)
        again = build_rows(pipeline, paths[::-1], folder / "2", 2**28, 1)
        table = pq.read_table(folder / "1")
        assert (folder / "1").read_bytes() == (folder / "2").read_bytes()
    assert first == again
    assert table.schema.equals(arrow_schema(pipeline))
    rows = table.to_pylist()
    found = {row["parcel"]: (row["weight"], row["lost"]) for row in rows}
    assert found == modelled(partitions)
    assert len(rows) == len(found) == first.rows
    assert [row["parcel"] for row in rows] == sorted(found)
    assert first.labelled_rows == sum(label is not None for _, label in found.values())
    times = [row["sent"] for row in rows]
    assert (first.first_event_time, first.last_event_time) == (times[0], times[-1])


def test_a_shard_from_before_a_field_was_added_reads_as_null(
    pipeline: Pipeline, spec: dict[str, Any], tmp_path: Path, make_record: Callable[..., bytes]
) -> None:
    fields = spec["schema"]["fields"]
    older = Pipeline.model_validate(
        spec
        | {"schema": spec["schema"] | {"fields": {n: f for n, f in fields.items() if n != "zone"}}}
    )
    paths = [tmp_path / "old.parquet", tmp_path / "new.parquet"]
    for path, known, name, zone in zip(paths, (older, pipeline), "ab", (..., "B"), strict=True):
        message = SimpleNamespace(offset=0, timestamp=0, value=make_record(name, zone=zone))
        path.write_bytes(shards.encode(Validator(known, 4096)([message.value]), [message], 0))
    build_rows(pipeline, paths, tmp_path / "rows.parquet", 2**28, 1)
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [(row["parcel"], row["zone"]) for row in rows] == [("a", None), ("b", "B")]
