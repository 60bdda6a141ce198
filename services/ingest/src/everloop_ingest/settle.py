"""Settling a batch: validate, store the shard, then commit position, books, dead letters and labels at once."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2
from everloop_ingest import metrics, shards
from everloop_ingest.adapters.store import DeadLetter, Store
from everloop_ingest.domain import Batch, Message, Reason, Rejection, Shard
from everloop_ingest.ports import ShardFiles
from everloop_ingest.validate import Validated, Validator
from everloop_runtime.events import Event, new_event

__all__ = ["SOURCE", "Settle"]

log = logging.getLogger(__name__)

SOURCE = "everloop.ingest"
_LABELS_PER_EVENT = 5_000
# What we send fits a broker's default limit of a message (1 MiB), however long ids, keys and headers are.
_BYTES_PER_EVENT = 512 * 1024
_KEY_BYTES = 16 * 1024
_HEADER_BYTES = 16 * 1024


class Settle:
    """The use case behind the dataset writer. Safe to call from several threads, for different partitions."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        store: Store,
        files: ShardFiles,
        max_record_bytes: int,
    ) -> None:
        """Takes the pipelines by name, the database, the data bucket and the largest record in bytes."""
        self._pipelines = pipelines
        self._validators = {name: Validator(p, max_record_bytes) for name, p in pipelines.items()}
        self._store = store
        self._files = files
        self._max_bytes = max_record_bytes

    def __call__(self, batch: Batch) -> bool:
        """Settles a batch once.

        The object goes first and the transaction that names it second: after a crash between the two the object is
        an orphan that nothing reads, and the batch comes again from the position in the database.

        Returns:
            False where the position is not at the batch's start (any more): nothing was changed, read again.

        Raises:
            EverloopError: kind unavailable, the object store or the database does not answer now.
        """
        began = time.monotonic()
        if not batch.messages:
            return self._store.settle(batch, None, (), ())
        pipeline = self._pipelines[batch.pipeline]
        validated = self._validate(batch)
        key, content = "", b""
        if validated.rows.num_rows:
            key = shards.object_key(batch)
            content = shards.encode(validated, batch.messages, batch.partition.number)
            self._files.put(key, content)
        shard = _shard(batch, pipeline, validated, key, len(content))
        letters = (
            _dead_letter(pipeline, batch, batch.messages[item.row], item, self._max_bytes)
            for item in validated.rejections
        )
        if not self._store.settle(batch, shard, letters, _labels(batch, pipeline, validated)):
            return False
        _count(shard, time.monotonic() - began)
        return True

    def _validate(self, batch: Batch) -> Validated:
        validator = self._validators[batch.pipeline]
        values = [message.value for message in batch.messages]
        try:
            return validator(values)
        except Exception:
            # A message that breaks the validator must not block its partition: find it, keep the others.
            log.exception("validation failed on %s, message by message now", batch.partition)
        poison = {}
        for row, value in enumerate(values):
            try:
                validator([value])
            except Exception as error:
                poison[row] = Rejection(row, Reason.UNPROCESSABLE, "", repr(error)[:500])
        rows = [row for row in range(len(values)) if row not in poison]
        rest = validator([values[row] for row in rows])
        found = [Rejection(rows[r.row], r.reason, r.field, r.message) for r in rest.rejections]
        rejections = sorted([*found, *poison.values()], key=lambda rejection: rejection.row)
        return Validated(
            rest.rows, pc.take(pa.array(rows, pa.int64()), rest.positions), rest.actuals, rejections
        )


def _shard(
    batch: Batch, pipeline: Pipeline, validated: Validated, key: str, size_bytes: int
) -> Shard:
    times = pc.min_max(validated.rows.column(pipeline.schema_.time)).as_py()
    return Shard(
        pipeline=batch.pipeline,
        partition=batch.partition,
        first_offset=batch.messages[0].offset,
        last_offset=batch.messages[-1].offset,
        key=key,
        accepted=validated.rows.num_rows,
        actuals=validated.actuals.true_count,
        rejected=dict(Counter(str(item.reason) for item in validated.rejections)),
        size_bytes=size_bytes,
        first_event_time=times["min"],
        last_event_time=times["max"],
    )


def _dead_letter(
    pipeline: Pipeline, batch: Batch, message: Message, rejection: Rejection, max_bytes: int
) -> DeadLetter:
    """The message as it came, with why; cut where it is so large that no topic could carry it with the reason."""
    notes = {
        "reason": str(rejection.reason),
        "field": rejection.field,
        "message": rejection.message,
        "origin": f"{batch.partition.topic}/{batch.partition.number}/{message.offset}",
    }
    value = message.value or b""
    if len(value) > max_bytes:
        notes["truncated-from-bytes"] = str(len(value))
    own = [(name, header or b"") for name, header in message.headers]
    if sum(len(name) + len(header) for name, header in own) > _HEADER_BYTES:
        own = []
    key = message.key[:_KEY_BYTES] if message.key is not None else None
    headers = [*own, *((f"everloop-{name}", text.encode()) for name, text in notes.items())]
    return pipeline.dead_letter_topic, key, value[:max_bytes], headers


def _labels(batch: Batch, pipeline: Pipeline, validated: Validated) -> Iterator[Event]:
    """ActualsRecorded for the rows whose target is known; the same batch gives the same event ids."""
    target = validated.rows.column(pipeline.target.field)
    known = validated.rows.filter(pc.is_valid(target))
    if not known.num_rows:
        return
    ids = known.column(pipeline.schema_.id).to_pylist()
    labels = [_text(value) for value in known.column(pipeline.target.field).to_pylist()]
    for index, (first, last) in enumerate(_chunks(ids, labels)):
        data = events_pb2.ActualsRecorded(
            pipeline=pipeline.name, record_ids=ids[first:last], labels=labels[first:last]
        )
        name = f"{shards.object_key(batch)}#{index}"
        yield new_event(SOURCE, pipeline.name, data, id=str(uuid.uuid5(uuid.NAMESPACE_URL, name)))


def _chunks(ids: Sequence[str], labels: Sequence[str]) -> Iterator[tuple[int, int]]:
    first = size = 0
    for row, (record_id, label) in enumerate(zip(ids, labels, strict=True)):
        length = 4 * len(record_id) + 4 * len(label) + 16  # UTF-8 takes at most 4 bytes a character
        if row - first == _LABELS_PER_EVENT or (row > first and size + length > _BYTES_PER_EVENT):
            yield first, row
            first, size = row, 0
        size += length
    yield first, len(ids)


def _text(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _count(shard: Shard, seconds: float) -> None:
    name = shard.pipeline
    metrics.RECORDS.labels(name, "accepted").inc(shard.accepted - shard.actuals)
    metrics.RECORDS.labels(name, "actual").inc(shard.actuals)
    metrics.RECORDS.labels(name, "rejected").inc(sum(shard.rejected.values()))
    metrics.SETTLE_SECONDS.labels(name).observe(seconds)
    if shard.key:
        metrics.SHARD_ROWS.labels(name).observe(shard.accepted)
        metrics.SHARD_BYTES.labels(name).observe(shard.size_bytes)
