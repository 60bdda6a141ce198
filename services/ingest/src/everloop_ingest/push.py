"""The gRPC door for records: validates at once and puts every record on the topic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import metrics
from everloop_ingest.domain import Rejection
from everloop_ingest.ports import RecordSink
from everloop_ingest.validate import Validator

__all__ = ["Push"]


class Push:
    """The use case.

    There is one way in, so that invalid records go to the topic as well: the dataset writer counts and dead-letters
    them once, whichever door they came by.
    """

    def __init__(
        self, pipelines: Mapping[str, Pipeline], sink: RecordSink, max_record_bytes: int
    ) -> None:
        """Takes the pipelines by name, the way onto the topics and the largest record in bytes."""
        self._validators = {name: Validator(p, max_record_bytes) for name, p in pipelines.items()}
        self._sink = sink
        self._max_bytes = max_record_bytes

    def __call__(
        self, pipeline: Pipeline, records: Sequence[bytes], seconds: float
    ) -> list[Rejection]:
        """Returns what is wrong, by row, when the broker has all records.

        Raises:
            EverloopError: kind unavailable: some may be on the topic, a repeat is safe because the last event of
                an id wins; kind exhausted: none is.
        """
        validated = self._validators[pipeline.name](records)
        ids: dict[int, str] = dict(
            zip(
                validated.positions.to_pylist(),
                validated.rows.column(pipeline.schema_.id).to_pylist(),
                strict=True,
            )
        )
        keyed = [
            (self._key(pipeline, record, ids.get(row)), self._carried(record))
            for row, record in enumerate(records)
        ]
        if keyed:
            self._sink.send(pipeline.record_topic, keyed, seconds)
        rejected = len(validated.rejections)
        metrics.PUSHED.labels(pipeline.name, "accepted").inc(len(records) - rejected)
        metrics.PUSHED.labels(pipeline.name, "rejected").inc(rejected)
        return validated.rejections

    def _key(self, pipeline: Pipeline, record: bytes, record_id: str | None) -> bytes | None:
        """The record id, also of a record that is rejected for something else."""
        if record_id is None and len(record) <= self._max_bytes:
            try:
                found = orjson.loads(record)
            except orjson.JSONDecodeError:
                return None
            value = found.get(pipeline.schema_.id) if isinstance(found, dict) else None
            record_id = value if isinstance(value, str) else None
        return record_id.encode() if record_id else None

    def _carried(self, record: bytes) -> bytes:
        # Of a record that is too large just enough for the writer to see it: no topic would take all of it.
        return record[: self._max_bytes + 1]
