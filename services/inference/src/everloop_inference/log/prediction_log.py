"""The prediction log: a prediction drops its row into a bounded buffer, a thread takes it from there.

Memory first, then the broker; while the broker is away, disk. Nobody who predicts waits for any of them.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence

import numpy as np

from everloop_features.inputs import Block
from everloop_inference.domain import Answer
from everloop_inference.log.books import Books
from everloop_inference.log.events import Entry, messages
from everloop_inference.log.spill import Damaged, Spill
from everloop_inference.ports import LogSink, Message, Outcome

__all__ = ["PredictionLog"]

log = logging.getLogger(__name__)

BATCH_BYTES = 2048
"""Memory that a batch takes besides its rows: arrays, lists, and what holds them."""
ROW_BYTES = 512
"""Memory that a row takes besides its values: ids, scores, and Python's share."""


class PredictionLog:
    """Buffers, batches, sends, spills and replays; counts every row in `books`."""

    def __init__(
        self,
        sink: LogSink,
        spill: Spill,
        *,
        batch_rows: int,
        batch_seconds: float,
        buffer_bytes: int,
        retry_seconds: float,
    ) -> None:
        """Takes the limits as the settings of the same names give them; `start` starts the thread."""
        self.books = Books()
        self._sink = sink
        self._spill = spill
        self._batch_rows = batch_rows
        self._batch_seconds = batch_seconds
        self._buffer_bytes = buffer_bytes
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._entries: list[Entry] = []
        self._rows = 0
        self._bytes: dict[str, int] = {}
        self._held = 0
        self._full = threading.Event()
        self._stopping = self._closed = False
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction log", daemon=True)
        for model, rows in spill.adopted:
            self.books.move(model, adopted=rows, spilled=rows)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Sends or spills what is buffered and ends the thread; what is offered later is dropped."""
        self._stopping = True
        self._full.set()
        self._thread.join()
        self._sink.close()
        self._spill.close()

    def offer(
        self,
        answer: Answer,
        block: Block,
        record_ids: Sequence[str],
        latency_micros: Sequence[int],
        size: int,
    ) -> None:
        """Takes the rows of a batch, or counts them as dropped; never waits and never fails.

        Args:
            answer: what was said.
            block: what it was said about; not changed by anybody afterwards.
            record_ids: one per row, empty where there is none.
            latency_micros: one per row.
            size: bytes that the values took in their requests.
        """
        model = answer.model
        count = len(answer.scores)
        sample = model.policy.log_sample
        rows = None
        if sample < 1.0:
            rows = _sample(count, sample)
            left_out = count - len(rows)
            if left_out:
                self.books.move(model.name, served=left_out, unsampled=left_out)
            count -= left_out
        if not count:
            return
        now = time.time_ns() // 1000
        size += BATCH_BYTES + ROW_BYTES * count
        entry = Entry(answer, block, record_ids, latency_micros, now, rows, size)
        with self._lock:
            held = self._bytes.get(model.name, 0) + entry.size
            total = self._held + entry.size
            # A model may hold as much as it leaves free: whoever floods the buffer leaves room for the others.
            fits = held <= self._buffer_bytes - total and not self._closed
            if fits:
                # In the books before the thread can see it.
                self.books.move(model.name, served=count, buffered=count)
                self._entries.append(entry)
                self._bytes[model.name] = held
                self._held = total
                self._rows += count
                full = self._rows >= self._batch_rows
        if not fits:
            self.books.move(model.name, served=count, dropped=count)
        elif full:
            self._full.set()

    def _run(self) -> None:
        while not self._stopping:
            self._full.wait(self._batch_seconds)
            self._full.clear()
            self._guarded()
        with self._lock:
            self._closed = True  # nobody comes for what is offered from here on
        self._guarded()

    def _guarded(self) -> None:
        """A cycle that goes wrong is not the last one: a log without its thread drops everything."""
        try:
            self._cycle()
        except Exception:
            log.exception("the prediction log goes on after an error")

    def _cycle(self) -> None:
        with self._lock:
            # Their bytes stay counted until they are settled: they are still in memory.
            entries, self._entries, self._rows = self._entries, [], 0
        try:
            self._settle(self._events(entries))
        finally:
            with self._lock:
                for entry in entries:
                    self._bytes[entry.answer.model.name] -= entry.size
                    self._held -= entry.size
        self._replay()

    def _events(self, entries: list[Entry]) -> list[Message]:
        """Returns the events of every model; of one whose rows cannot be written down, none."""
        models: dict[str, list[Entry]] = {}
        for entry in entries:
            models.setdefault(entry.answer.model.name, []).append(entry)
        batch: list[Message] = []
        for model, some in models.items():
            try:
                batch += list(messages(some, self._batch_rows))
            except Exception:
                log.exception("rows of %s cannot be written down and are dropped", model)
                self._move(model, sum(entry.count for entry in some), "buffered", "dropped")
        return batch

    def _settle(self, batch: list[Message]) -> None:
        """Sends new messages, or puts them behind those that wait on disk already."""
        waiting = batch
        if batch and self._spill.is_empty():
            waiting = self._send(batch, "buffered")
            if waiting:
                log.warning("the broker is away: predictions are logged to disk")
                self._retry_at = time.monotonic() + self._retry_seconds
        if waiting:
            outcome = "spilled" if self._spill.write(waiting) else "dropped"
            for message in waiting:
                self._move(message.model, message.rows, "buffered", outcome)

    def _replay(self) -> None:
        """Sends what is on disk, oldest first, until it is gone, the broker refuses, or new rows have waited enough."""
        deadline = time.monotonic() + self._batch_seconds
        while not self._spill.is_empty() and self._retry_at <= time.monotonic() < deadline:
            try:
                oldest = self._spill.oldest()
            except Damaged:
                log.exception("rows of the prediction log are lost on disk")
                for model, rows in self._spill.set_aside():
                    self._move(model, rows, "spilled", "dropped")
                continue
            except OSError as error:
                log.error("the prediction log cannot be read from disk, and tries again: %s", error)
                self._retry_at = time.monotonic() + self._retry_seconds
                return
            waiting = self._send(oldest, "spilled")
            if waiting:
                self._retry_at = time.monotonic() + self._retry_seconds
                self._spill.keep(waiting)
                return
            self._spill.forget()
            if self._spill.is_empty():
                log.warning("the broker is back: everything on disk has been logged")

    def _send(self, batch: list[Message], source: str) -> list[Message]:
        """Sends and books messages that come from `source`; returns those that must go again."""
        waiting = []
        try:
            outcomes = self._sink.send(batch)
        except Exception:
            log.exception("the prediction log cannot be sent")
            outcomes = [Outcome.AWAY] * len(batch)
        for message, outcome in zip(batch, outcomes, strict=True):
            if outcome is Outcome.AWAY:
                waiting.append(message)
                continue
            stored = outcome is Outcome.STORED
            self._move(message.model, message.rows, source, "logged" if stored else "dropped")
        return waiting

    def _move(self, model: str, rows: int, source: str, target: str) -> None:
        self.books.move(model, **{source: -rows, target: rows})


def _sample(rows: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    if rows == 1:  # the common case, without the cost of arrays
        return np.arange(1 if random.random() < share else 0)
    return np.flatnonzero(np.random.random(rows) < share)
