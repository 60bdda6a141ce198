"""Shards: accepted rows of consecutive messages as one Parquet object, named by where they come from."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Batch, Message
from everloop_ingest.validate import Validated, arrow_schema

__all__ = ["IS_ACTUAL", "OFFSET", "PARTITION", "TIMESTAMP", "encode", "object_key", "template"]

# The pipeline specification reserves the prefix: no field of a schema can be called so.
TIMESTAMP = "everloop_timestamp"
PARTITION = "everloop_partition"
OFFSET = "everloop_offset"
IS_ACTUAL = "everloop_is_actual"


def object_key(batch: Batch) -> str:
    """Path of a batch's shard inside the data bucket: the same batch always has the same one."""
    first, last = batch.messages[0].offset, batch.messages[-1].offset
    topic, number = batch.partition.topic, batch.partition.number
    return f"{batch.pipeline}/shards/{topic}/{number}/{first:012d}-{last:012d}.parquet"


def encode(validated: Validated, messages: Sequence[Message], partition: int) -> bytes:
    """The accepted rows as Parquet, with what orders the events of one record id.

    Besides the schema's fields: the Kafka timestamp in milliseconds, partition and offset, and whether the row is
    a late label. Producers that send no key spread an id over partitions, so that offsets alone do not order it.
    """
    rows = validated.rows
    timestamps = pa.array([message.timestamp for message in messages], pa.int64())
    offsets = pa.array([message.offset for message in messages], pa.int64())
    table = pa.Table.from_arrays(
        [
            *rows.columns,
            pc.take(timestamps, validated.positions),
            pa.repeat(pa.scalar(partition, pa.int32()), rows.num_rows),
            pc.take(offsets, validated.positions),
            validated.actuals,
        ],
        names=[*rows.schema.names, TIMESTAMP, PARTITION, OFFSET, IS_ACTUAL],
    )
    return _parquet(table)


def template(pipeline: Pipeline) -> bytes:
    """A shard without rows.

    Shards of earlier schemas that are read by name along with it have every column of today's, null where they have
    none of their own, and of a type that holds today's values and theirs.
    """
    own = [
        pa.field(TIMESTAMP, pa.int64()),
        pa.field(PARTITION, pa.int32()),
        pa.field(OFFSET, pa.int64()),
        pa.field(IS_ACTUAL, pa.bool_()),
    ]
    return _parquet(pa.schema([*arrow_schema(pipeline), *own]).empty_table())


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1)
    return bytes(sink.getvalue())
