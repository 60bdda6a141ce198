"""Settling a batch: validate, store the shard, then commit position, books, dead letters and labels at once."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc

from everloop_contracts.events import INGEST
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2
from everloop_ingest import letters, metrics, shards
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.domain import (
    Batch,
    DeadLetter,
    Message,
    Reason,
    Rejection,
    Shard,
)
from everloop_ingest.formats import is_protobuf
from everloop_ingest.ports import ShardFiles
from everloop_ingest.validate import Validated, Validator
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event, new_event

__all__ = ["SOURCE", "Settle"]

log = logging.getLogger(__name__)

SOURCE = INGEST
_LABELS_PER_EVENT = 5_000
_BYTES_PER_EVENT = 512 * 1024
"""Fits a broker's default limit of a message (1 MiB), however long ids are."""
_TRACEPARENT = re.compile(rb"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""Of W3C Trace Context, version 00; anybody may send anything."""


class Settle:
    """The use case behind the dataset writer. Safe to call from several threads, for different partitions."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        settlements: Settlements,
        files: ShardFiles,
        max_record_bytes: int,
    ) -> None:
        """Takes the pipelines by name, the database, the data bucket and the largest record in bytes."""
        self._pipelines = pipelines
        self._validators = {name: Validator(p, max_record_bytes) for name, p in pipelines.items()}
        self._settlements = settlements
        self._files = files
        self._max_bytes = max_record_bytes

    def __call__(self, batch: Batch) -> bool:
        """Settles a batch once, whatever its messages are.

        The objects (rows, dead letters) go first and the transaction that names them second: after a crash between
        the two they are orphans that nothing reads, until they are swept, and the batch comes again from the position
        in the database.

        A batch that fails for another reason than an outage is settled in halves, down to the message that it fails
        on: that one is rejected as unprocessable, a defect of ours that must not block its partition.

        Returns:
            False where the position is not at the batch's start (any more): nothing more was changed, read again.

        Raises:
            EverloopError: kind unavailable, the object store or the database does not answer now; what comes before
                the position in the database is settled.
            Exception: the database refuses even to reject a message.
        """
        if not batch.messages:
            return self._settlements.settle(batch, None, (), ())
        try:
            return self._whole(batch)
        except Exception as error:
            if isinstance(error, EverloopError) and error.kind is Kind.UNAVAILABLE:
                raise
            if len(batch.messages) == 1:
                log.exception("%s: offset %d is unprocessable", batch.partition, batch.start)
                return self._reject(batch, error)
            log.warning(
                "%s fails from offset %d to %d, in halves now: %r",
                batch.partition,
                batch.start,
                batch.end,
                error,
            )
        return all(self(half) for half in _halves(batch))

    def _whole(self, batch: Batch) -> bool:
        began = time.monotonic()
        pipeline = self._pipelines[batch.pipeline]
        messages = [_as_sent(message) for message in batch.messages]
        validated = self._validators[batch.pipeline](
            [message.value for message in messages],
            [message.timestamp for message in messages],
            {
                row
                for row, message in enumerate(messages)
                if message.headers and is_protobuf(message.headers)
            },
        )
        key, content = "", b""
        if validated.rows.num_rows:
            key = shards.object_key(batch)
            content = shards.encode(validated, messages, batch.partition.number)
            self._files.put(key, content)
        shard = _shard(batch, pipeline, validated, key, len(content))
        rejected = [_dead_letter(messages[item.row], item) for item in validated.rejections]
        events = _labels(batch, pipeline, validated)
        if not self._commit(batch, shard, rejected, events):
            return False
        _count(shard, time.monotonic() - began)
        return True

    def _reject(self, batch: Batch, error: Exception) -> bool:
        """Settles the one message of a batch by its dead letter, whatever it holds."""
        [message] = batch.messages
        rejection = Rejection(0, Reason.UNPROCESSABLE, "", repr(error)[:500])
        shard = _rejected(batch, [rejection])
        # Without the message's own headers: nothing in it can fail.
        if not self._commit(batch, shard, [_bare_letter(message, rejection)], ()):
            return False
        _count(shard, 0.0)
        return True

    def _commit(
        self, batch: Batch, shard: Shard, rejected: Sequence[DeadLetter], events: Iterable[Event]
    ) -> bool:
        """Stores the dead letters as an object, then commits everything at once."""
        key = ""
        if rejected:
            key = letters.object_key(batch)
            self._files.put(key, letters.encode(rejected))
        pipeline = self._pipelines[batch.pipeline]
        outgoing = (
            letters.rejected(pipeline, batch.partition, letter, self._max_bytes)
            for letter in rejected
        )
        return self._settlements.settle(batch, shard, outgoing, events, key)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A replayed message with the time at which it was sent first."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


def _as_sent(message: Message) -> Message:
    if not message.headers:
        return message
    timestamp = letters.sent_at(message.timestamp, message.headers)
    if timestamp == message.timestamp:
        return message
    return _Sent(message.offset, timestamp, message.key, message.value, message.headers)


def _halves(batch: Batch) -> tuple[Batch, Batch]:
    middle = len(batch.messages) // 2
    border = batch.messages[middle].offset
    return (
        replace(batch, end=border, messages=batch.messages[:middle]),
        replace(batch, start=border, messages=batch.messages[middle:]),
    )


def _rejected(batch: Batch, rejections: Sequence[Rejection]) -> Shard:
    """The books of a batch as far as nothing of it is accepted."""
    return Shard(
        pipeline=batch.pipeline,
        partition=batch.partition,
        first_offset=batch.messages[0].offset,
        last_offset=batch.messages[-1].offset,
        key="",
        accepted=0,
        actuals=0,
        rejected=dict(Counter(str(item.reason) for item in rejections)),
        size_bytes=0,
        first_event_time=None,
        last_event_time=None,
    )


def _shard(
    batch: Batch, pipeline: Pipeline, validated: Validated, key: str, size_bytes: int
) -> Shard:
    times = pc.min_max(validated.rows.column(pipeline.schema_.time)).as_py()
    return replace(
        _rejected(batch, validated.rejections),
        key=key,
        accepted=validated.rows.num_rows,
        actuals=validated.actuals.true_count,
        size_bytes=size_bytes,
        first_event_time=times["min"],
        last_event_time=times["max"],
        trace=_trace(batch.messages),
    )


def _trace(messages: Sequence[Message]) -> str:
    """`traceparent` of the last message that has one; a version goes on with the trace of its last record."""
    for message in reversed(messages):
        for name, value in message.headers:
            if name == "traceparent" and value and _TRACEPARENT.fullmatch(value):
                return value.decode()
    return ""


def _dead_letter(message: Message, rejection: Rejection) -> DeadLetter:
    """The message as it came, with why."""
    headers = [(name, value or b"") for name, value in message.headers]
    return replace(_bare_letter(message, rejection), headers=headers)


def _bare_letter(message: Message, rejection: Rejection) -> DeadLetter:
    return DeadLetter(
        offset=message.offset,
        timestamp=message.timestamp,
        key=message.key,
        value=message.value or b"",
        headers=(),
        reason=rejection.reason,
        field=rejection.field,
        message=rejection.message,
    )


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
