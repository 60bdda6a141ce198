"""From new shards and the parts of the version before to the parts of the next: only those change that new rows touch.

Parts are ranges of (event time, record id), like the leaves of a B+-tree: a row belongs to the last part that does not
begin after it. A cut reads the parts that hold an id of the new shards or take a row of theirs, and writes them anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_ingest.checks import MAX_VALUES, Profile
from everloop_ingest.domain import Part
from everloop_ingest.parts import (
    HASH,
    LABEL_ORDER,
    LABELLED,
    ORDER,
    TARGET,
    PartFiles,
    columns_digest,
    labels_schema,
    write_part,
)
from everloop_ingest.record_index import RecordIndex
from everloop_ingest.shards import IS_ACTUAL, template

__all__ = ["INDEX", "Base", "BuildLimits", "Built", "build_parts"]

INDEX = "index"
"""Folder in that for work which is kept; all others go with their process."""

_SQL: dict[FieldType, str] = {
    FieldType.STRING: "VARCHAR",
    FieldType.BOOL: "BOOLEAN",
    FieldType.INT: "BIGINT",
    FieldType.FLOAT: "DOUBLE",
    FieldType.TIMESTAMP: "TIMESTAMPTZ",
}
_ORDER_SQL = ("BIGINT", "INTEGER", "BIGINT")
_BATCH = 65_536
_MANY_PARTS = 5_000
"""Beyond which a cut puts as many pairs together as it takes: an event names all parts of a version."""


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What building a version's parts may use, and how large a part is.

    Attributes:
        folder: for work and for the index of record ids.
        memory_bytes: memory that DuckDB may use; beyond it, it spills to disk.
        threads: threads that it may use.
        part_rows: most rows of a part.
        compact_parts: pairs of small parts that one cut puts together at most.
    """

    folder: Path
    memory_bytes: int
    threads: int
    part_rows: int
    compact_parts: int


@dataclass(frozen=True, slots=True)
class Base:
    """The version before, as far as it is in parts.

    Attributes:
        parts: in order; none for a build from scratch.
        labels: file with labels that wait for their record, if any do.
        index: finds the parts of record ids.
        fetch: copies parts and their states to this disk, in the order of the parts.
    """

    parts: Sequence[Part]
    labels: Path | None
    index: RecordIndex
    fetch: Callable[[Sequence[Part]], list[PartFiles]]


@dataclass(frozen=True, slots=True)
class Built:
    """A version's parts, in order; those among them that are new, and those of before that are not among them."""

    parts: list[Part]
    added: list[PartFiles]
    removed: list[Part]
    labels: Path | None
    """Labels that wait for their record."""
    profile: Profile
    """Of the records that the shards brought."""


def build_parts(
    pipeline: Pipeline,
    number: int,
    shards: Sequence[Path],
    base: Base,
    folder: Path,
    limits: BuildLimits,
    erased: Sequence[str] = (),
) -> Built:
    """Adds shards to a version, which becomes version `number`; the new files are below `folder`.

    The last event of an id wins, and so does its last known label, which may come before the record, after it or
    with it; a later record without a label does not take it away. Events are ordered by Kafka timestamp, then
    partition, then offset. Labels without a record are kept apart until it comes.

    However the shards were spread over cuts, the rows are the same and in the same order: by event time, then record
    id. Where one part ends and the next begins depends on the cuts. The same shards on the same base give the same
    bytes.

    What the version before knows of the record ids `erased` is forgotten first: if the shards hold records or labels of
    them, these are the first ones.
    """
    with duckdb.connect(
        config={"threads": limits.threads, "memory_limit": f"{limits.memory_bytes}B"}
    ) as database:
        database.execute("SET temp_directory = ?", [str(folder / "spill")])
        # Times leave as the instants they are, whatever the machine's zone is.
        database.execute("SET TimeZone = 'UTC'")
        return _Build(database, pipeline, number, base, folder, limits)(shards, erased)


class _Build:
    """One build, table by table: new events, parts they may touch, their rows merged, parts written anew."""

    def __init__(
        self,
        database: duckdb.DuckDBPyConnection,
        pipeline: Pipeline,
        number: int,
        base: Base,
        folder: Path,
        limits: BuildLimits,
    ) -> None:
        schema = pipeline.schema_
        self._database = database
        self._pipeline = pipeline
        self._number = number
        self._base = base
        self._folder = folder
        self._part_rows = limits.part_rows
        self._compact_parts = limits.compact_parts
        self._names = list(schema.fields)
        self._types = {name: _SQL[spec.type] for name, spec in schema.fields.items()}
        self._key, self._time = _quoted(schema.id), _quoted(schema.time)
        self._label = _quoted(pipeline.target.field)
        self._fields = _list(self._names)
        self._loaded: set[int] = set()

    def __call__(self, shards: Sequence[Path], erased: Sequence[str]) -> Built:
        self._database.register("erased_ids", pa.table({"id": pa.array(erased, pa.string())}))
        self._database.execute(f"CREATE TABLE erased AS SELECT id AS {self._key} FROM erased_ids")
        self._read_events(shards)
        self._load(self._base.index.holding(self._base.parts, self._hashes()))
        bereft = self._erase()
        profile = self._profile()
        labels = self._merge()
        touched = self._touched(bereft)
        # From scratch everything belongs to a part that is not there yet.
        runs = _runs(touched) if self._base.parts else [[0]]
        self._load(touched)
        written = list(self._write(runs))
        return self._built(touched, written, labels, profile)

    def _read_events(self, shards: Sequence[Path]) -> None:
        """Tables `records` and `labels`: what the shards say last of each id; `changed`: the ids."""
        run = self._database.execute
        columns = ", ".join(f"{_quoted(name)} {self._types[name]}" for name in self._names)
        order, label_order = _columns(ORDER), _columns(LABEL_ORDER)
        label_type = self._types[self._pipeline.target.field]
        run(f"CREATE TABLE records ({columns}, {order})")
        run(f"CREATE TABLE old ({columns}, {order}, {label_order}, part INTEGER)")
        run(f"CREATE TABLE merged ({columns}, {order}, {label_order})")
        run(f"CREATE TABLE labels ({self._key} VARCHAR, {self._label} {label_type}, {label_order})")
        self._view_events(shards)
        run(f"""
            INSERT INTO records SELECT {self._fields}, {_list(ORDER)} FROM events
            WHERE NOT {IS_ACTUAL} {self._newest(ORDER)}
        """)
        known = f"SELECT {self._key}, {self._label}, {_list(ORDER)} FROM events"
        waiting = ""
        if self._base.labels is not None:
            held = self._database.read_parquet(str(self._base.labels))
            held.create_view("waiting")
            if self._pipeline.target.field in held.columns:  # else they are labels of another field
                waiting = f"UNION ALL SELECT * FROM waiting ANTI JOIN erased USING ({self._key})"
        run(f"""
            INSERT INTO labels FROM ({known} WHERE {self._label} IS NOT NULL {waiting})
            AS known({self._key}, {self._label}, {_list(LABEL_ORDER)}) {self._newest(LABEL_ORDER)}
        """)
        run(f"""
            CREATE TABLE changed AS SELECT {self._key}
            FROM (SELECT {self._key} FROM records UNION SELECT {self._key} FROM labels)
        """)

    def _view_events(self, shards: Sequence[Path]) -> None:
        """View `events`: all messages of the shards."""
        # By name: shards from before a field was added read as null there, and as today's type where it was widened.
        today = self._folder / "template.parquet"
        today.write_bytes(template(self._pipeline))
        files = [str(path) for path in (*shards, today)]
        self._database.read_parquet(files, union_by_name=True).create_view("events")

    def _erase(self) -> set[int]:
        """Takes the erased ids out of table `old`; positions of the parts that held one."""
        here = f"old SEMI JOIN erased USING ({self._key})"
        found = self._database.sql(f"SELECT DISTINCT part FROM {here}").fetchall()
        ids = f"SELECT {self._key} FROM erased"
        self._database.execute(f"DELETE FROM old WHERE {self._key} IN ({ids})")
        return {part for [part] in found}

    def _hashes(self) -> Any:
        ids = f"SELECT {self._key} FROM changed UNION SELECT {self._key} FROM erased"
        query = f"SELECT {_hash(self._key)} AS hash FROM ({ids})"
        return self._database.sql(query).fetchnumpy()["hash"]

    def _load(self, positions: Sequence[int]) -> None:
        """Puts parts into table `old`, if they are not there."""
        new = [position for position in positions if position not in self._loaded]
        self._loaded.update(new)
        files = self._base.fetch([self._base.parts[position] for position in new])
        for position, item in zip(new, files, strict=True):
            names = pq.read_schema(item.rows).names
            self._database.execute(
                f"""
                INSERT INTO old
                SELECT {self._present(names)}, {_list(ORDER)}, {self._label_order(item, names)}, ?
                FROM read_parquet(?) AS rows POSITIONAL JOIN read_parquet(?) AS state
                """,
                [position, str(item.rows), str(item.state)],
            )

    def _label_order(self, item: PartFiles, names: Sequence[str]) -> str:
        """What orders the labels of a part, for a SELECT."""
        target = self._pipeline.target.field
        metadata = pq.read_schema(item.state).metadata or {}
        if metadata.get(TARGET, target.encode()) == target.encode():
            return _list(LABEL_ORDER)
        # Another field was the target: what is known of this one came with the record.
        known = f"{self._label if target in names else 'NULL'} IS NOT NULL"
        return ", ".join(f"CASE WHEN {known} THEN {name} END" for name in ORDER)

    def _merge(self) -> Path | None:
        """Table `merged`: the row of each changed id that has a record; the labels of the others are returned."""
        run = self._database.execute
        held = f"FROM old SEMI JOIN changed USING ({self._key})"
        label = f"{self._key}, {self._label}, {_list(LABEL_ORDER)}"
        run(f"""
            CREATE TABLE last_labels AS FROM (
                SELECT {label} FROM labels
                UNION ALL SELECT {label} {held} WHERE {LABELLED} IS NOT NULL
            ) {self._newest(LABEL_ORDER)}
        """)
        fields = ", ".join(
            f"{'last_labels' if name == self._pipeline.target.field else 'last_records'}.{_quoted(name)}"
            for name in self._names
        )
        run(f"""
            INSERT INTO merged SELECT {fields}, {_list(ORDER)}, {_list(LABEL_ORDER)}
            FROM (
                FROM (
                    FROM records UNION ALL SELECT {self._fields}, {_list(ORDER)} {held}
                ) {self._newest(ORDER)}
            ) AS last_records LEFT JOIN last_labels USING ({self._key})
        """)
        waiting = self._database.sql(
            f"FROM last_labels ANTI JOIN merged USING ({self._key}) ORDER BY {self._key}"
        ).to_arrow_table()
        if not waiting.num_rows:
            return None
        path = self._folder / "labels.parquet"
        pq.write_table(waiting.cast(labels_schema(self._pipeline)), path, compression="zstd")
        return path

    def _touched(self, bereft: set[int]) -> list[int]:
        """Positions of the parts to write anew; table `targets`: the part that each merged row belongs to."""
        first = [(part.first_event_time, part.first_record_id) for part in self._base.parts[1:]]
        bounds = pa.table(
            {
                "time": pa.array([time for time, _ in first], pa.timestamp("us", "UTC")),
                "id": pa.array([record_id for _, record_id in first], pa.string()),
            }
        )
        self._database.register("bounds", bounds)
        self._database.execute(f"""
            CREATE TABLE targets AS SELECT id AS {self._key}, part FROM (
                SELECT id, bound,
                    sum(bound) OVER (ORDER BY time, id, bound DESC ROWS UNBOUNDED PRECEDING) AS part
                FROM (
                    SELECT {self._time} AS time, {self._key} AS id, 0 AS bound FROM merged
                    UNION ALL SELECT time, id, 1 FROM bounds
                )
            ) WHERE bound = 0
        """)
        held = f"SELECT part FROM old SEMI JOIN changed USING ({self._key})"
        found = self._database.execute(f"SELECT part FROM targets UNION {held}").fetchall()
        columns = columns_digest(self._pipeline)
        others = (n for n, part in enumerate(self._base.parts) if part.columns != columns)
        if not self._base.parts:
            return []
        touched = {int(part) for [part] in found}.union(others, bereft)
        return sorted(touched.union(self._small_pairs()))

    def _small_pairs(self) -> Iterator[int]:
        """Parts that fill half a part together with their neighbour: deletions and changes of the limit leave them."""
        rows = [part.rows for part in self._base.parts]
        pairs = (n for n in range(len(rows) - 1) if 2 * (rows[n] + rows[n + 1]) <= self._part_rows)
        most = max(self._compact_parts, len(rows) - _MANY_PARTS)
        for position in itertools.islice(pairs, most):
            yield from (position, position + 1)

    def _write(self, runs: Sequence[Sequence[int]]) -> Iterator[tuple[int, PartFiles]]:
        """Writes parts that follow each other anew, run by run; each with the position where its run began."""
        places = [(part, run[0]) for run in runs for part in run]
        self._database.execute("CREATE TABLE runs (part INTEGER, run INTEGER)")
        if places:
            self._database.executemany("INSERT INTO runs VALUES (?, ?)", places)
        state = _list((*ORDER, *LABEL_ORDER))
        self._database.execute(f"""
            CREATE VIEW rows AS
            SELECT {self._fields}, {state}, run
            FROM old JOIN runs USING (part) ANTI JOIN changed USING ({self._key})
            UNION ALL SELECT {self._fields}, {state}, run
            FROM merged JOIN targets USING ({self._key}) JOIN runs USING (part)
        """)
        counts = self._database.sql("SELECT run, count(*) FROM rows GROUP BY run").fetchall()
        rows = self._database.sql(f"""
            SELECT * EXCLUDE run, {_hash(self._key)} AS {HASH} FROM rows
            ORDER BY {self._time}, {self._key}
        """).to_arrow_reader(_BATCH)
        last = len(self._base.parts) - 1
        sizes = {
            run[0]: _sizes(dict(counts).get(run[0], 0), self._part_rows, run[-1] >= last)
            for run in runs
        }
        starts = [start for start, all_of_it in sizes.items() for _ in all_of_it]
        pieces = _pieces(rows, itertools.chain.from_iterable(sizes.values()))
        for number, (start, table) in enumerate(zip(starts, pieces, strict=True)):
            stem = self._folder / f"part-{number}"
            yield start, write_part(self._pipeline, self._number, table, stem)

    def _profile(self) -> Profile:
        """Counts of the last record of each id in the shards."""
        schema, inputs = self._pipeline.schema_, self._pipeline.inputs
        known = {schema.id, schema.time, self._pipeline.target.field}
        names = [name for name in self._names if name not in known]
        counts = ", ".join(["count(*)", *(f"count({_quoted(name)})" for name in names)])
        [[records, *filled]] = self._database.sql(f"SELECT {counts} FROM records").fetchall()
        values: dict[str, dict[str, int] | None] = {}
        for name in names:
            if name in inputs and inputs[name].type is FieldType.STRING:
                field = _quoted(name)
                found = self._database.sql(
                    f"SELECT {field}, count(*) FROM records WHERE {field} IS NOT NULL GROUP BY ALL"
                    f" ORDER BY ALL LIMIT {MAX_VALUES + 1}"
                ).fetchall()
                values[name] = dict(found) if len(found) <= MAX_VALUES else None
        nulls = {name: records - count for name, count in zip(names, filled, strict=True)}
        return Profile(records, nulls, values)

    def _built(
        self,
        touched: Sequence[int],
        written: Sequence[tuple[int, PartFiles]],
        labels: Path | None,
        profile: Profile,
    ) -> Built:
        before = {_content(part): part for part in self._base.parts}
        added, kept, parts = [], set(), []
        for position, part in enumerate([*self._base.parts] or [None]):
            if part is not None and position not in touched:
                parts.append(part)
            for item in (item for start, item in written if start == position):
                same = before.get(_content(item.part))
                parts.append(same or item.part)
                if same is None:
                    added.append(item)
                else:
                    kept.add(same)
        removed = [self._base.parts[position] for position in touched]
        return Built(parts, added, [part for part in removed if part not in kept], labels, profile)

    def _present(self, columns: Sequence[str]) -> str:
        """The schema's fields for a SELECT; null where a file from before has none of that name."""
        there = set(columns)
        return ", ".join(_quoted(name) if name in there else "NULL" for name in self._names)

    def _newest(self, order: Sequence[str]) -> str:
        latest = ", ".join(f"{name} DESC" for name in order)
        return f"QUALIFY row_number() OVER (PARTITION BY {self._key} ORDER BY {latest}) = 1"


def _content(part: Part) -> tuple[str, str]:
    """What two parts have in common whose rows and states are the same."""
    return part.md5, Path(part.state).name


def _runs(positions: Sequence[int]) -> list[list[int]]:
    """Positions that follow each other, together."""
    runs: list[list[int]] = []
    for position in positions:
        if runs and runs[-1][-1] == position - 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return runs


def _sizes(rows: int, most: int, newest: bool) -> list[int]:
    """How many rows each part of a run gets.

    At the end of the order parts are filled, since what comes next goes behind them; in between, even ones leave
    each of them room.
    """
    if newest:
        return [most] * (rows // most) + [rows % most] * (rows % most > 0)
    count = -(-rows // most)
    return [(rows + n) // count for n in range(count)]


def _pieces(reader: pa.RecordBatchReader, sizes: Iterator[int]) -> Iterator[pa.Table]:
    """The rows of a reader in tables of these sizes; holds one of them at a time."""
    batches = iter(reader)
    rest = reader.schema.empty_table()
    for size in sizes:
        held = [rest]
        while sum(table.num_rows for table in held) < size:
            held.append(pa.Table.from_batches([next(batches)]))
        table = pa.concat_tables(held)
        yield table.slice(0, size).combine_chunks()
        rest = table.slice(size)


def _columns(order: Sequence[str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in zip(order, _ORDER_SQL, strict=True))


def _hash(key: str) -> str:
    return f"md5_number_lower({key})"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(_quoted, names))
