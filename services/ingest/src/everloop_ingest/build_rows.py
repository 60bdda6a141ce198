"""From shards to a version's rows: one per record id, its last event, its newest known label."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow.parquet as pq

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Rows
from everloop_ingest.shards import IS_ACTUAL, OFFSET, PARTITION, TIMESTAMP, template
from everloop_ingest.validate import arrow_schema

__all__ = ["build_rows"]

_ROW_GROUP = 122_880


def build_rows(
    pipeline: Pipeline, shards: Sequence[Path], target: Path, memory_bytes: int, threads: int
) -> Rows:
    """Writes `target`: columns as in the schema, sorted by event time, then id.

    The last event of an id wins, and so does its last known label, which may come before the record, after it or
    with it; a later record without a label does not take it away. Events are ordered by Kafka timestamp, then
    partition, then offset. Labels without a record are left out. The same shards give the same bytes.

    Args:
        pipeline: whose rows they are.
        shards: files as `shards.encode` makes them, at least one with a record.
        target: file to write.
        memory_bytes: memory that may be used; beyond it DuckDB spills to disk beside the target.
        threads: threads that may be used.
    """
    schema = pipeline.schema_
    names = [_quoted(name) for name in schema.fields]
    key, time, label = _quoted(schema.id), _quoted(schema.time), _quoted(pipeline.target.field)
    order = f"{{'t': {TIMESTAMP}, 'p': {PARTITION}, 'o': {OFFSET}}}"
    columns = ", ".join(
        f"labels.label AS {name}" if name == label else f"records.{name}" for name in names
    )
    with duckdb.connect(
        config={"threads": threads, "memory_limit": f"{memory_bytes}B"}
    ) as database:
        database.execute("SET temp_directory = ?", [str(target.parent / "spill")])
        # By name: shards from before a field was added read as null there, and as today's type where it was widened.
        today = target.with_name("template.parquet")
        today.write_bytes(template(pipeline))
        files = [str(path) for path in (*shards, today)]
        events = database.read_parquet(files, union_by_name=True)
        events.create_view("events")
        # Times leave as the instants they are, whatever the machine's zone is.
        database.execute("SET TimeZone = 'UTC'")
        rows = database.sql(f"""
            SELECT {columns}
            FROM (
                SELECT {", ".join(names)} FROM events WHERE NOT {IS_ACTUAL}
                QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY {order} DESC) = 1
            ) AS records
            LEFT JOIN (
                SELECT {key}, arg_max({label}, {order}) AS label FROM events
                WHERE {label} IS NOT NULL GROUP BY {key}
            ) AS labels USING ({key})
            ORDER BY records.{time}, records.{key}
        """)
        # Not DuckDB's own COPY: it marks columns as required by what the rows hold, and the schema must not change
        # with them.
        with pq.ParquetWriter(target, arrow_schema(pipeline), compression="zstd") as writer:
            for batch in rows.to_arrow_reader(_ROW_GROUP):
                writer.write_batch(batch.cast(writer.schema))
        written = database.read_parquet(str(target))
        counts = f"count(*), count({label}), epoch_us(min({time})), epoch_us(max({time}))"
        [row] = written.aggregate(counts).fetchall()
    return Rows(row[0], row[1], _instant(row[2]), _instant(row[3]))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _instant(microseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=microseconds)
