"""Records on their way in: cut into calls, and what became of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from everloop.rows import Row, Unsendable, to_json

__all__ = ["BATCH_BYTES", "Batch", "Pushed", "Rejection", "batches"]

BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of the records of one call: a quarter of the largest message that services take."""


@dataclass(frozen=True)
class Rejection:
    """A record that was not taken.

    Attributes:
        position: Place among the records pushed: 0, 1, 2, …
        reason: Code: MALFORMED_JSON, MISSING_FIELD, WRONG_TYPE, UNKNOWN_FIELD, OUT_OF_RANGE, RECORD_TOO_LARGE, …
        field: Field that breaks the schema; empty if none does.
        message: Explanation for a person.
        record: What was pushed; empty where it could not be written as JSON.
    """

    position: int
    reason: str
    field: str
    message: str
    record: bytes


@dataclass
class Pushed:
    """What became of the records of a push.

    Attributes:
        accepted: Records that are valid and on the broker.
        rejected: The others, in the order of their positions.
    """

    accepted: int = 0
    rejected: list[Rejection] = field(default_factory=list)

    def by_reason(self) -> dict[str, list[Rejection]]:
        """Groups the rejected records by reason, the most frequent first."""
        groups: dict[str, list[Rejection]] = {}
        for rejection in self.rejected:
            groups.setdefault(rejection.reason, []).append(rejection)
        return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


@dataclass
class Batch:
    """The records of one call.

    Attributes:
        first: Position of its first record.
        bodies: JSON objects.
        positions: Place of each among the records pushed.
        refused: Records that no call can carry.
        size: Bytes of the bodies.
    """

    first: int = 0
    bodies: list[bytes] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    refused: list[Rejection] = field(default_factory=list)
    size: int = 0

    def __len__(self) -> int:
        return len(self.bodies) + len(self.refused)

    def add(self, entry: bytes | Rejection, position: int) -> None:
        """Adds a record, as JSON or as what keeps it from being sent."""
        if isinstance(entry, Rejection):
            self.refused.append(entry)
        else:
            self.bodies.append(entry)
            self.positions.append(position)
            self.size += len(entry)


def batches(records: Iterable[Row | bytes], rows: int, first: int = 0) -> Iterator[Batch]:
    """Cuts records into batches of at most so many rows and `BATCH_BYTES`; `first` is the first one's position.

    Where a batch ends depends on its own records alone: from the first of any batch on, the rest is cut alike.
    """
    batch = Batch(first)
    for position, record in enumerate(records, start=first):
        entry = _entry(position, record)
        size = len(entry) if isinstance(entry, bytes) else 0
        if len(batch) >= rows or batch.size + size > BATCH_BYTES:
            yield batch
            batch = Batch(position)
        batch.add(entry, position)
    if len(batch):
        yield batch


def _entry(position: int, record: Row | bytes) -> bytes | Rejection:
    try:
        body = record if isinstance(record, bytes) else to_json(record)
    except Unsendable as error:
        return Rejection(position, "WRONG_TYPE", error.field, f"{error.field}: {error}", b"")
    if len(body) > BATCH_BYTES:
        message = f"{len(body)} bytes, a call carries at most {BATCH_BYTES}"
        return Rejection(position, "RECORD_TOO_LARGE", "", message, body)
    return body
