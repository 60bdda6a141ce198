"""The rows of versions, against a model of the rule in plain Python, however they were cut."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import shards
from everloop_ingest.build_parts import Base, BuildLimits, Built, build_parts
from everloop_ingest.domain import Part, Rows
from everloop_ingest.parts import STATE, PartFiles
from everloop_ingest.record_index import RecordIndex
from everloop_ingest.validate import Validator, arrow_schema

Event = tuple[int, str, bool, int, bool | None]
"""Kafka timestamp, id, whether a label alone, weight and second of the event time, label."""

NAMES = "abcdefgh"

events = st.tuples(
    st.integers(0, 5),
    st.sampled_from(NAMES),
    st.booleans(),
    st.integers(0, 20),
    st.none() | st.booleans(),
)
shard = st.tuples(st.integers(0, 2), st.lists(events, min_size=1, max_size=6))
"""Partition and messages."""
cuts = st.lists(st.lists(shard, min_size=1, max_size=3), min_size=1, max_size=5)


class Versions:
    """Versions of one pipeline on disk, cut after cut."""

    def __init__(self, folder: Path, pipeline: Pipeline, part_rows: int = 3) -> None:
        self.folder = folder
        self.pipeline = pipeline
        self.limits = BuildLimits(folder, 2**28, 1, part_rows, 1)
        self.index = RecordIndex(folder / "index", self.states)
        self.parts: list[Part] = []
        self.labels: Path | None = None
        self.files: dict[str, PartFiles] = {}
        self.fetched: list[Part] = []
        self.cuts = 0

    def states(self, parts: Sequence[Part]) -> list[Path]:
        return [self.files[part.state].state for part in parts]

    def fetch(self, parts: Sequence[Part]) -> list[PartFiles]:
        self.fetched += parts
        return [self.files[part.state] for part in parts]

    def build(self, paths: Sequence[Path]) -> Built:
        folder = self.folder / f"cut-{self.cuts}"
        folder.mkdir()
        self.cuts += 1
        base = Base(self.parts, self.labels, self.index, self.fetch)
        return build_parts(self.pipeline, 1, paths, base, folder, self.limits)

    def cut(self, paths: Sequence[Path]) -> Built:
        built = self.build(paths)
        self.files |= {item.part.state: item for item in built.added}
        self.parts, self.labels = built.parts, built.labels
        return built

    def table(self) -> pa.Table:
        tables = [pq.read_table(self.files[part.state].rows) for part in self.parts]
        return pa.concat_tables(tables) if tables else arrow_schema(self.pipeline).empty_table()

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table().to_pylist()
        return rows


def encoded(pipeline: Pipeline, partition: int, first: int, chosen: list[Event]) -> bytes:
    messages = []
    for offset, (timestamp, name, alone, weight, label) in enumerate(chosen, first):
        body: dict[str, Any] = {"parcel": name, "lost": bool(label) if alone else label}
        if not alone:
            body |= {"sent": f"2026-03-01T12:00:{weight:02d}Z", "weight": weight}
        messages.append(
            SimpleNamespace(
                offset=offset, timestamp=timestamp, key=None, value=orjson.dumps(body), headers=[]
            )
        )
    validated = Validator(pipeline, 4096)([message.value for message in messages])
    assert not validated.rejections
    return shards.encode(validated, messages, partition)


def modelled(chosen: Sequence[tuple[int, int, Event]]) -> list[tuple[int, str, bool | None]]:
    """Second, id and label of each row, in order, of events with their partition and offset."""
    rows: dict[str, int] = {}
    labels: dict[str, bool] = {}
    for _, _, (_, name, alone, weight, label) in sorted(
        chosen, key=lambda item: (item[2][0], item[0], item[1])
    ):
        if alone:
            labels[name] = bool(label)
            continue
        rows[name] = weight
        if label is not None:
            labels[name] = label
    return sorted((second, name, labels.get(name)) for name, second in rows.items())


@settings(max_examples=10)
@given(cuts)
def test_any_sequence_of_cuts_gives_the_rows_of_one_build_from_scratch(
    pipeline: Pipeline, chosen: list[list[tuple[int, list[Event]]]]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        versions = Versions(folder, pipeline)
        offsets = [0, 0, 0]
        everything: list[tuple[int, int, Event]] = []
        paths: list[Path] = []
        for batch in chosen:
            new = []
            for partition, messages in batch:
                first = offsets[partition]
                path = folder / f"{partition}-{first}.parquet"
                path.write_bytes(encoded(pipeline, partition, first, messages))
                everything += [
                    (partition, first + row, event) for row, event in enumerate(messages)
                ]
                offsets[partition] += len(messages)
                new.append(path)
            paths += new
            before = list(versions.parts)
            again = versions.build(new)
            built = versions.cut(new)
            # A repeat, as after a crash, gives the same bytes; parts that stay are the same objects.
            assert [part.md5 for part in again.parts] == [part.md5 for part in built.parts]
            assert set(before) - set(built.removed) <= set(built.parts)
            table = versions.table()
            found = [(r["sent"].second, r["parcel"], r["lost"]) for r in table.to_pylist()]
            assert found == modelled(everything)
            assert all(part.rows <= 3 for part in built.parts)
            if built.parts:
                assert table.schema.equals(arrow_schema(pipeline))
                counts = Rows.of(built.parts)
                assert counts.rows == len(found)
                assert counts.labelled_rows == sum(label is not None for *_, label in found)
                times = [row["sent"] for row in table.to_pylist()]
                assert (counts.first_event_time, counts.last_event_time) == (times[0], times[-1])
        (folder / "other").mkdir()
        scratch = Versions(folder / "other", pipeline, part_rows=5)
        scratch.cut(paths[::-1])
        assert scratch.rows() == versions.rows()
        waiting = [
            sorted(pq.read_table(path).to_pylist(), key=str) if path else []
            for path in (scratch.labels, versions.labels)
        ]
        assert waiting[0] == waiting[1]


def numbered(versions: Versions, *chosen: Event) -> Path:
    path = versions.folder / f"shard-{versions.cuts}.parquet"
    path.write_bytes(encoded(versions.pipeline, 0, 100 * versions.cuts, list(chosen)))
    return path


def test_only_the_parts_that_new_events_touch_are_read_and_change(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    versions = Versions(tmp_path, pipeline, part_rows=2)
    first = [(0, f"id{n}", False, n, None) for n in range(0, 12, 2)]
    versions.cut([numbered(versions, *first)])
    assert [part.first_record_id for part in versions.parts] == ["id0", "id4", "id8"]
    one, two, three = versions.parts
    # A late label, in the middle.
    versions.cut([numbered(versions, (1, "id6", True, 0, True))])
    assert (versions.parts[0], versions.parts[2], len(versions.parts)) == (one, three, 3)
    assert versions.fetched == [two]
    # A row at the end, which is full, goes behind it.
    versions.fetched.clear()
    versions.cut([numbered(versions, (2, "id11", False, 11, None))])
    assert [part.rows for part in versions.parts] == [2, 2, 2, 1]
    # A row in the middle halves its part.
    versions.cut([numbered(versions, (2, "id5", False, 5, None))])
    assert [part.rows for part in versions.parts] == [2, 1, 2, 2, 1]
    assert versions.parts[0] is one
    # A row that moves from the beginning to the end touches both.
    versions.fetched.clear()
    versions.cut([numbered(versions, (3, "id0", False, 20, None))])
    assert [row["parcel"] for row in versions.rows()] == [
        *("id2", "id4", "id5", "id6", "id8", "id10", "id11", "id0")
    ]
    assert one in versions.fetched
    assert len(versions.fetched) == 2


def test_small_parts_are_put_together_a_few_at_a_cut(pipeline: Pipeline, tmp_path: Path) -> None:
    versions = Versions(tmp_path, pipeline, part_rows=1)
    versions.cut([numbered(versions, *((0, name, False, 1, None) for name in "abcdef"))])
    assert [part.rows for part in versions.parts] == [1] * 6
    versions.limits = replace(versions.limits, part_rows=4)
    counts = []
    for second in range(10, 14):
        built = versions.cut([numbered(versions, (1, f"z{second}", False, second, None))])
        assert len(built.removed) <= 3  # a pair, and the last part for what is new
        counts.append(len(versions.parts))
    assert counts == [5, 4, 4, 5]
    assert all(part.rows > 1 for part in versions.parts[:1])
    assert len(versions.rows()) == 10


def test_events_that_say_nothing_new_leave_every_part(pipeline: Pipeline, tmp_path: Path) -> None:
    versions = Versions(tmp_path, pipeline)
    versions.cut([numbered(versions, (5, "a", False, 1, True), (5, "b", False, 2, None))])
    before = versions.parts
    built = versions.cut([numbered(versions, (1, "a", False, 9, False), (1, "b", False, 9, None))])
    assert (built.added, built.removed, versions.parts) == ([], [], before)
    # An event that came first on the topic may still bring the only label.
    versions.cut([numbered(versions, (1, "b", False, 9, True))])
    assert [(row["weight"], row["lost"]) for row in versions.rows()] == [(1, True), (2, True)]


def test_an_id_that_only_shares_its_hash_with_others_touches_no_part(
    pipeline: Pipeline, tmp_path: Path
) -> None:
    versions = Versions(tmp_path, pipeline)
    versions.cut([numbered(versions, *((0, name, False, 1, None) for name in "abc"))])
    [before] = versions.parts
    versions.index.holding = lambda parts, hashes: list(range(len(parts)))  # type: ignore[method-assign]
    versions.cut([numbered(versions, (1, "z", False, 9, None), (1, "y", True, 9, True))])
    assert versions.parts[0] == before
    assert [row["parcel"] for row in versions.rows()] == ["a", "b", "c", "z"]


def test_the_index_is_made_anew_where_the_disk_was_lost(pipeline: Pipeline, tmp_path: Path) -> None:
    versions = Versions(tmp_path, pipeline)
    versions.cut([numbered(versions, *((0, name, False, 1, None) for name in "abcde"))])
    for file in (tmp_path / "index").glob("*"):
        file.unlink()
    versions.cut([numbered(versions, (1, "a", True, 0, True))])
    assert [row["lost"] for row in versions.rows()] == [True, None, None, None, None]
    assert len(list((tmp_path / "index").iterdir())) == 2
    versions.cut([numbered(versions, (2, "e", True, 0, True))])
    versions.index.keep(versions.parts)
    assert len(list((tmp_path / "index").iterdir())) == 1


def test_a_part_s_state_says_where_its_rows_come_from(pipeline: Pipeline, tmp_path: Path) -> None:
    versions = Versions(tmp_path, pipeline)
    versions.cut([numbered(versions, (7, "a", False, 1, None), (8, "a", True, 0, True))])
    [part] = versions.parts
    table = pq.read_table(versions.files[part.state].state)
    assert table.schema.equals(STATE)
    [row] = table.to_pylist()
    assert [row[name] for name in table.schema.names[:6]] == [7, 0, 0, 8, 0, 1]


def test_a_field_that_is_added_is_null_in_what_was_there_before(
    pipeline: Pipeline, spec: dict[str, Any], tmp_path: Path, make_record: Callable[..., bytes]
) -> None:
    fields = spec["schema"]["fields"]
    older = Pipeline.model_validate(
        spec
        | {"schema": spec["schema"] | {"fields": {n: f for n, f in fields.items() if n != "zone"}}}
    )
    versions = Versions(tmp_path, older, part_rows=1)
    paths = [tmp_path / f"{name}.parquet" for name in "abc"]
    for offset, (path, known, zone) in enumerate(
        zip(paths, (older, older, pipeline), (..., ..., "B"), strict=True)
    ):
        record = make_record(path.stem, zone=zone)
        message = SimpleNamespace(offset=offset, timestamp=0, value=record)
        path.write_bytes(shards.encode(Validator(known, 4096)([message.value]), [message], 0))
    versions.cut(paths[:1])
    versions.pipeline = pipeline
    versions.cut(paths[1:2])  # a shard from before, too
    assert versions.table().schema.equals(arrow_schema(pipeline))
    versions.cut(paths[2:])
    rows = versions.rows()
    assert [(row["parcel"], row["zone"]) for row in rows] == [("a", None), ("b", None), ("c", "B")]
