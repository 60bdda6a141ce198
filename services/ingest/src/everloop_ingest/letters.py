"""Dead letters as objects, the rejected messages of one batch, and as messages: for people, and for another try."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Batch, DeadLetter, OutboxMessage, Partition, Reason

__all__ = [
    "REPLAY_OF",
    "SENT",
    "decode",
    "encode",
    "name_of",
    "object_key",
    "rejected",
    "replayed",
    "sent_at",
]

# Headers of a replayed message.
REPLAY_OF = "everloop-replay-of"
"""Id of the dead letter."""
SENT = "everloop-sent-ms"
"""Its Kafka timestamp, milliseconds since 1970-01-01 UTC: it keeps its place among the events of its record."""

# With these a message fits the outbox and a broker's default limit (1 MiB), however long its own key and headers are.
_KEY_BYTES = 16 * 1024
_HEADER_BYTES = 16 * 1024
_LONGEST_TIME = 19
_HEADERS = pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))
_SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("timestamp", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", _HEADERS),
        ("reason", pa.string()),
        ("field", pa.string()),
        ("message", pa.string()),
    ]
)


def object_key(batch: Batch) -> str:
    """Path inside the data bucket of what a batch rejects: the same batch always has the same one."""
    first, last = batch.messages[0].offset, batch.messages[-1].offset
    topic, number = batch.partition.topic, batch.partition.number
    return f"{batch.pipeline}/dead-letters/{topic}/{number}/{first:012d}-{last:012d}.parquet"


def encode(letters: Sequence[DeadLetter]) -> bytes:
    """Dead letters as Parquet, in the order of their offsets."""
    rows = [
        {
            "offset": letter.offset,
            "timestamp": letter.timestamp,
            "key": letter.key,
            "value": letter.value,
            "headers": [{"name": _text(name), "value": value} for name, value in letter.headers],
            "reason": str(letter.reason),
            "field": _text(letter.field),
            "message": _text(letter.message),
        }
        for letter in letters
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), sink, compression="zstd")
    return bytes(sink.getvalue())


def decode(path: Path, reason: str, below: int | None) -> Iterator[DeadLetter]:
    """The dead letters of an object, newest first.

    Args:
        path: what `encode` made, as a file.
        reason: the only one that is wanted; all where empty.
        below: offset that they stay below; None for all.
    """
    wanted: list[tuple[str, str, str | int]] = [("reason", "=", reason)] if reason else []
    if below is not None:
        wanted.append(("offset", "<", below))
    table = pq.read_table(path, filters=wanted or None)
    for row in range(table.num_rows - 1, -1, -1):
        [letter] = table.slice(row, 1).to_pylist()
        headers = [(item["name"], item["value"]) for item in letter.pop("headers")]
        yield DeadLetter(**letter | {"headers": headers, "reason": Reason(letter["reason"])})


def name_of(partition: Partition, letter: DeadLetter) -> str:
    """What names a dead letter: where it came."""
    return f"{partition.topic}/{partition.number}/{letter.offset}"


def rejected(
    pipeline: Pipeline, partition: Partition, letter: DeadLetter, max_bytes: int
) -> OutboxMessage:
    """A dead letter as a message that says why; cut where it is so large that no topic could carry it with the reason.

    Args:
        pipeline: whose dead-letter topic it goes to.
        partition: where it came.
        letter: the message and the reason.
        max_bytes: of its body that are kept.
    """
    notes = {
        "reason": str(letter.reason),
        "field": letter.field,
        "message": letter.message,
        "origin": name_of(partition, letter),
    }
    if len(letter.value) > max_bytes:
        notes["truncated-from-bytes"] = str(len(letter.value))
    key = letter.key[:_KEY_BYTES] if letter.key is not None else None
    told = [
        (f"everloop-{name}", text.encode(errors="backslashreplace")) for name, text in notes.items()
    ]
    headers = [*_fitting(letter.headers), *told]
    return pipeline.dead_letter_topic, key, letter.value[:max_bytes], headers


def replayed(pipeline: Pipeline, partition: Partition, letter: DeadLetter) -> OutboxMessage:
    """A dead letter as a message for the record topic, linked to where it came; without a key that is too long."""
    key = letter.key if letter.key is not None and len(letter.key) <= _KEY_BYTES else None
    own = [(name, value) for name, value in letter.headers if name not in (REPLAY_OF, SENT)]
    origin = name_of(partition, letter).encode()
    links = [(REPLAY_OF, origin), (SENT, str(letter.timestamp).encode())]
    return pipeline.record_topic, key, letter.value, [*_fitting(own), *links]


def _fitting(headers: Sequence[tuple[str, bytes]]) -> Sequence[tuple[str, bytes]]:
    """The headers, none of them where together they are too long."""
    size = sum(len(_text(name).encode()) + len(value) for name, value in headers)
    return headers if size <= _HEADER_BYTES else ()


def sent_at(timestamp: int, headers: Sequence[tuple[str, bytes | None]]) -> int:
    """When a message was sent first, milliseconds since 1970-01-01 UTC: its own timestamp unless it is a replay."""
    for name, value in headers:
        if name == SENT and value and len(value) <= _LONGEST_TIME and value.isdigit():
            return min(int(value), 2**63 - 1)
    return timestamp


def _text(text: str) -> str:
    """The text as UTF-8 can hold it."""
    return text.encode(errors="backslashreplace").decode()
