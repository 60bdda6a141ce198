"""Records that a caller streams: sent ahead of the broker's acknowledgements, within a bound, answered in order."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import RECORD_OVERHEAD_BYTES, Rejection
from everloop_ingest.push import Pending, Push
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Answer", "Incoming", "RecordStream", "StreamLimits"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """One message of a stream."""

    pipeline: Pipeline
    records: Sequence[bytes]
    request_id: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one message.

    Attributes:
        records: how many it held.
        rejections: of those that are not accepted, by row.
    """

    records: int
    rejections: list[Rejection]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What one stream may use.

    Attributes:
        max_bytes: of messages that were read and not answered, see `RECORD_OVERHEAD_BYTES`; one alone may have more.
        timeout_seconds: how long the broker may take to make room for a message, and then to acknowledge it.
        idle_seconds: how long nothing may come.
    """

    max_bytes: int
    timeout_seconds: float
    idle_seconds: float


class RecordStream:
    """The use case. Safe to call from several threads, each with a stream of its own."""

    def __init__(self, push: Push, limits: StreamLimits) -> None:
        """Takes what pushes the records of one message, and the limits."""
        self._push = push
        self._limits = limits

    def __call__(self, messages: Iterator[Incoming]) -> Iterator[Answer]:
        """One answer for each message, in their order, when the broker has its records.

        A thread reads ahead, so that the caller may send without waiting for answers. It stops reading while too
        many bytes are not answered, and the transport then holds the caller up.

        Raises:
            EverloopError: as `Push` does, for the first message that it is raised for; kind exhausted where the
                broker makes no room in time; kind deadline, reason STREAM_IDLE. Messages behind it may be on the topic.
        """
        line = _Line(self._limits.max_bytes)
        # The reader's records carry the trace of the call.
        context = contextvars.copy_context()
        reader = threading.Thread(
            target=context.run, args=(self._read, messages, line), name="record stream", daemon=True
        )
        reader.start()
        try:
            while (item := line.next(self._limits.idle_seconds)) is not None:
                rejections = item.pending.answer(self._limits.timeout_seconds)
                yield Answer(item.records, rejections)
                line.answered(item.size)
        finally:
            line.close()

    def _read(self, messages: Iterator[Incoming], line: _Line) -> None:
        seconds = self._limits.timeout_seconds
        try:
            for message in messages:
                # A message without records takes room as well, or any number of them would have it.
                size = RECORD_OVERHEAD_BYTES * (1 + len(message.records))
                size += sum(map(len, message.records))
                if not line.room(size):
                    return
                pending = self._push.begin(
                    message.pipeline, message.records, message.request_id, seconds
                )
                line.put(_Item(len(message.records), size, pending))
            line.put(None)
        except Exception as error:  # whoever reads the answers is told
            line.put(error)


@dataclass(frozen=True, slots=True)
class _Item:
    """A message whose records are on their way."""

    records: int
    size: int
    pending: Pending


class _Line:
    """What was read and is not answered, in order; None or an error ends it."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._items: deque[_Item | Exception | None] = deque()
        self._closed = False
        self._changed = threading.Condition()

    def room(self, size: int) -> bool:
        """Waits until so many bytes more may be under way, and takes them; False once nobody reads answers."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or not self._bytes or self._bytes + size <= self._max_bytes
            )
            self._bytes += size
            return not self._closed

    def put(self, item: _Item | Exception | None) -> None:
        with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    def next(self, seconds: float) -> _Item | None:
        """The next message, None at the end.

        Raises:
            Exception: what ended the reading; kind deadline where nothing came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._items, seconds):
                raise EverloopError(
                    Kind.DEADLINE,
                    "STREAM_IDLE",
                    f"nothing came for {seconds:g} s; open a new stream",
                )
            item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    def answered(self, size: int) -> None:
        with self._changed:
            self._bytes -= size
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
