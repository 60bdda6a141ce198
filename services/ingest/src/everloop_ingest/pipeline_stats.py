"""The books of a pipeline, and how far its writer is behind."""

from __future__ import annotations

from dataclasses import dataclass

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.domain import Books, lag
from everloop_ingest.ports import RecordLog

__all__ = ["PipelineStats", "Stats"]

_BROKER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Stats:
    """What is known of a pipeline's messages.

    Attributes:
        books: what became of those that are settled.
        lag: those that are not settled yet.
        lost: offsets that the topic had dropped before they were settled.
    """

    books: Books
    lag: int
    lost: int


class PipelineStats:
    """The use case."""

    def __init__(self, settlements: Settlements, record_log: RecordLog) -> None:
        """Takes the database and the topics."""
        self._settlements = settlements
        self._log = record_log

    def __call__(self, pipeline: Pipeline, seconds: float) -> Stats:
        """Asks the broker, which has `seconds` and at most 10, and the database.

        Raises:
            EverloopError: kind unavailable.
        """
        topic = pipeline.record_topic
        # Positions before ends: a lag that is a little too large rather than messages that are in neither.
        positions = self._settlements.positions(topic)
        ends = self._log.end_offsets(topic, min(_BROKER_SECONDS, seconds))
        books = self._settlements.books(pipeline.name)
        return Stats(books, lag(positions, ends), self._settlements.lost(topic))
