"""What waits in memory to be settled, by partition: how much it is, when it is due, and how much goes at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from everloop_ingest.domain import RECORD_OVERHEAD_BYTES, Message

__all__ = ["Buffer", "Limits", "blocked"]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch is closed, and how much may wait in memory."""

    shard_rows: int
    shard_bytes: int
    shard_age_seconds: float
    batch_bytes: int
    """Bytes of messages that are settled at once; a message that alone has more goes alone."""
    buffer_rows: int
    buffer_bytes: int
    backlog: int
    """Messages in the outbox beyond which no batch is settled: dead letters leave slower than they may come in."""
    workers: int


@dataclass(slots=True)
class Buffer:
    """All messages that a partition's log holds from `start` to `end`, waiting to be settled."""

    assignment: int
    """Number of the assignment that they were read under."""
    start: int
    end: int
    opened: float
    """When the first of them came, in seconds of a monotonic clock."""
    messages: list[Message] = field(default_factory=list)
    size: int = 0
    """What they take in memory, in bytes."""
    adrift: bool = False
    """The log has dropped what comes next: this is settled, then the position is put on the log again."""

    def add(self, messages: Sequence[Message], now: float) -> None:
        """Takes messages that follow those that it has."""
        self.opened = self.opened if self.messages else now
        self.messages.extend(messages)
        self.size += sum(map(_bytes_of, messages))
        self.end = messages[-1].offset + 1

    def due(self, limits: Limits, now: float) -> bool:
        """Whether it is to be settled: it is full or old, or the log goes on elsewhere."""
        old = now - self.opened >= limits.shard_age_seconds
        full = len(self.messages) >= limits.shard_rows or self.size >= limits.shard_bytes
        return full or self.adrift or (old and self.end > self.start)

    def split(self, most: int, now: float) -> Buffer:
        """Keeps its first messages, of at most `most` bytes but at least one; returns the others, opened now."""
        rest = replace(self, start=self.end, messages=[], size=0, opened=now)
        if self.size <= most or len(self.messages) < 2:
            return rest
        sizes = itertools.accumulate(map(_bytes_of, self.messages))
        count = max(1, sum(1 for _ in itertools.takewhile(lambda size: size <= most, sizes)))
        first, others = self.messages[:count], self.messages[count:]
        size = sum(map(_bytes_of, first))
        # What the log holds between two messages, and is none, goes with the first.
        border = others[0].offset
        rest = replace(rest, start=border, messages=others, size=self.size - size)
        self.end, self.messages, self.size = border, first, size
        return rest


def blocked(before: bool, rows: int, size: int, limits: Limits) -> bool:
    """Whether nothing is to be read now: too much waits, or it was too much and is not down to half of it yet.

    Args:
        before: what it was.
        rows: messages in memory.
        size: bytes that they take.
        limits: how much may wait.
    """
    share = max(size / limits.buffer_bytes, rows / limits.buffer_rows)
    return share > 0.5 if before else share >= 1


def _bytes_of(message: Message) -> int:
    return RECORD_OVERHEAD_BYTES + len(message.value or b"")
