"""Parts: a version's rows as Parquet files that users get, and beside each its state, which they do not.

The state of a part has one row for each of the part's, in the same order: which event its record comes from and which
one its label, as `shards.encode` numbers them, and the hash of its record id. With them later events are ordered
against what is in the part, whatever cuts were between.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Part
from everloop_ingest.shards import OFFSET, PARTITION, TIMESTAMP
from everloop_ingest.validate import arrow_schema

__all__ = [
    "HASH",
    "LABELLED",
    "LABEL_ORDER",
    "ORDER",
    "STATE",
    "TARGET",
    "PartFiles",
    "columns_digest",
    "labels_key",
    "labels_schema",
    "write_part",
]

ORDER = (TIMESTAMP, PARTITION, OFFSET)
"""What orders a record's event among those of its id; all null for no event."""
LABEL_ORDER = ("everloop_label_timestamp", "everloop_label_partition", "everloop_label_offset")
"""The same of the event that its label comes from."""
LABELLED = LABEL_ORDER[0]
HASH = "everloop_hash"
"""First 64 bits of the record id's MD5, see `record_index.py`."""
TARGET = b"everloop_target"
"""Key in a state's metadata: the field whose labels are ordered there."""

_TYPES = (pa.int64(), pa.int32(), pa.int64())
_ORDERS = [*zip(ORDER, _TYPES, strict=True), *zip(LABEL_ORDER, _TYPES, strict=True)]
STATE = pa.schema([*_ORDERS, (HASH, pa.uint64())])

_ROW_GROUP = 122_880


@dataclass(frozen=True, slots=True)
class PartFiles:
    """A part and its two files on this disk."""

    part: Part
    rows: Path
    state: Path


def columns_digest(pipeline: Pipeline) -> str:
    """What changes where a part of before would have other columns or types, or labels of another field."""
    columns = [f"{field.name}: {field.type}" for field in arrow_schema(pipeline)]
    text = "\n".join([*columns, pipeline.target.field])
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def labels_schema(pipeline: Pipeline) -> pa.Schema:
    """The schema of labels that wait for their record: the id, the label, and what orders it."""
    schema = arrow_schema(pipeline)
    fields = [schema.field(pipeline.schema_.id), schema.field(pipeline.target.field)]
    return pa.schema([*fields, *zip(LABEL_ORDER, _TYPES, strict=True)])


def labels_key(pipeline: Pipeline, number: int, file: Path) -> str:
    """Path inside the data bucket of the labels that wait at a version, a new one for each version.

    The same labels may wait again, while those of an earlier version are being deleted.
    """
    return f"{pipeline.name}/labels/v{number}/{_digest(file, 'md5')}.parquet"


def write_part(pipeline: Pipeline, number: int, table: pa.Table, stem: Path) -> PartFiles:
    """Writes a part and its state; the same rows and states give the same bytes.

    Args:
        pipeline: whose rows they are.
        number: of the version; part of the state's path, for the reason that `labels_key` gives.
        table: the schema's fields and the state's, in order of event time, then record id; at least one row.
        stem: path of the two files, without what tells them apart.
    """
    schema = arrow_schema(pipeline)
    rows, state = stem.with_suffix(".rows.parquet"), stem.with_suffix(".state.parquet")
    # Cast: DuckDB marks columns as required by what they hold, and the schema must not change with that.
    pq.write_table(
        table.select(schema.names).cast(schema), rows, compression="zstd", row_group_size=_ROW_GROUP
    )
    labels_of = STATE.with_metadata({TARGET: pipeline.target.field.encode()})
    pq.write_table(table.select(STATE.names).cast(labels_of), state, compression="zstd")
    md5, sha256 = _digest(rows), _digest(rows, "sha256")
    times = table.column(pipeline.schema_.time)
    part = Part(
        md5=md5,
        sha256=sha256,
        size_bytes=rows.stat().st_size,
        rows=table.num_rows,
        labelled_rows=table.num_rows - table.column(pipeline.target.field).null_count,
        first_event_time=times[0].as_py(),
        first_record_id=table.column(pipeline.schema_.id)[0].as_py(),
        last_event_time=pc.max(times).as_py(),
        state=f"{pipeline.name}/parts/v{number}/{md5}-{_digest(state, 'md5')}.parquet",
        columns=columns_digest(pipeline),
    )
    return PartFiles(part, rows, state)


def _digest(file: Path, name: str = "md5") -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, name).hexdigest()
