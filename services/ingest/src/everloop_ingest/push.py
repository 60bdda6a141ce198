"""The gRPC door for records: validates at once and puts every record on the topic."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import orjson

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import metrics
from everloop_ingest.adapters.store import Store
from everloop_ingest.domain import Pushed, Rejection
from everloop_ingest.ports import RecordSink
from everloop_ingest.validate import Validator
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Push"]


class Push:
    """The use case.

    There is one way in, so that invalid records go to the topic as well: the dataset writer counts and dead-letters
    them once, whichever door they came by.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        sink: RecordSink,
        store: Store,
        max_record_bytes: int,
    ) -> None:
        """Takes the pipelines by name, the way onto the topics, the database and the largest record in bytes."""
        self._validators = {name: Validator(p, max_record_bytes) for name, p in pipelines.items()}
        self._sink = sink
        self._store = store
        self._max_bytes = max_record_bytes

    def __call__(
        self, pipeline: Pipeline, records: Sequence[bytes], request_id: str, seconds: float
    ) -> list[Rejection]:
        """Returns what is wrong, by row, when the broker has all records.

        A repeat of a `request_id` that was answered returns that answer and sends nothing. One whose first call ended
        without an answer, or has not ended yet, sends again: the last event of an id wins. An empty `request_id` is
        none.

        Raises:
            EverloopError: kind unavailable: some may be on the topic; kind exhausted: none is; kind conflict, reason
                REQUEST_ID_REUSED: the request came with other records before.
        """
        if not request_id:
            return self._push(pipeline, records, seconds)
        digest = _digest(records)
        answer = self._store.pushed(pipeline.name, request_id)
        if answer is None:
            mine = Pushed(digest, self._push(pipeline, records, seconds))
            answer = self._store.answer_push(pipeline.name, request_id, mine, datetime.now(UTC))
        if answer.digest != digest:
            raise EverloopError(
                Kind.CONFLICT,
                "REQUEST_ID_REUSED",
                "this request_id came with other records before; take a new one for each request",
                field="request_id",
            )
        return answer.rejections

    def _push(
        self, pipeline: Pipeline, records: Sequence[bytes], seconds: float
    ) -> list[Rejection]:
        now = time.time_ns() // 1_000_000
        validated = self._validators[pipeline.name](records, [now] * len(records))
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
            self._sink.send(pipeline.record_topic, keyed, now, seconds)
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


def _digest(records: Sequence[bytes]) -> bytes:
    """Names the records and where each of them ends."""
    found = hashlib.sha256()
    for record in records:
        found.update(len(record).to_bytes(8, "big"))
        found.update(record)
    return found.digest()
