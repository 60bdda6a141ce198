"""Catching up with a topic: whatever was on it is stored."""

from __future__ import annotations

import time
from collections.abc import Callable

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.domain import lag
from everloop_ingest.ports import RecordLog, Writer
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["CatchUp"]

_POLL_SECONDS = 0.05


class CatchUp:
    """The use case. Whichever process has a partition stores its messages; the writer of this one is told to hurry."""

    def __init__(
        self,
        settlements: Settlements,
        record_log: RecordLog,
        writer: Writer,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes the database, the topics and the writer; `wait` pauses between two looks at the database."""
        self._settlements = settlements
        self._log = record_log
        self._writer = writer
        self._wait = wait

    def __call__(self, pipeline: Pipeline, seconds: float) -> None:
        """Returns when everything is stored that was on the topic when this was called.

        Raises:
            EverloopError: kind deadline, reason WRITER_BEHIND, after `seconds`; kind unavailable, the broker does not
                answer in that time.
        """
        deadline = time.monotonic() + seconds
        topic = pipeline.record_topic
        ends = self._log.end_offsets(topic, seconds)
        while behind := lag(self._settlements.positions(topic), ends):
            if time.monotonic() >= deadline:
                raise EverloopError(
                    Kind.DEADLINE,
                    "WRITER_BEHIND",
                    f"{behind} messages of {pipeline.name} are not stored yet; ask again with the same request_id",
                )
            self._writer.flush(topic)
            self._wait(_POLL_SECONDS)
