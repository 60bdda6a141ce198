"""The gRPC door for records: validates at once and puts every record on the topic."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import orjson

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import metrics
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.domain import Pushed, Rejection
from everloop_ingest.ports import Delivery, RecordSink
from everloop_ingest.request_ids import reused
from everloop_ingest.validate import Validator

__all__ = ["Pending", "Push"]


class Push:
    """The use case.

    There is one way in, so that invalid records go to the topic as well: the dataset writer counts and dead-letters
    them once, whichever door they came by.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        sink: RecordSink,
        requests: Requests,
        max_record_bytes: int,
    ) -> None:
        """Takes the pipelines by name, the way onto the topics, the database and the largest record in bytes."""
        self._validators = {name: Validator(p, max_record_bytes) for name, p in pipelines.items()}
        self._sink = sink
        self._requests = requests
        self._max_bytes = max_record_bytes

    def __call__(
        self, pipeline: Pipeline, records: Sequence[bytes], request_id: str, seconds: float
    ) -> list[Rejection]:
        """Returns what is wrong, by row, when the broker has all records; see `begin` and `Pending.answer`."""
        deadline = time.monotonic() + seconds
        pending = self.begin(pipeline, records, request_id)
        return pending.answer(max(0.0, deadline - time.monotonic()))

    def begin(
        self,
        pipeline: Pipeline,
        records: Sequence[bytes],
        request_id: str,
        patience: float = 0.0,
    ) -> Pending:
        """Validates records and puts them on their way.

        A repeat of a `request_id` that was answered returns that answer and sends nothing. One whose first call ended
        without an answer, or has not ended yet, sends again: the last event of an id wins. An empty `request_id` is
        none.

        Args:
            pipeline: whose records they are.
            records: JSON objects.
            request_id: of the request.
            patience: how many seconds to wait where too many bytes are under way.

        Raises:
            EverloopError: kind unavailable: some may be on the topic; kind exhausted: none is; kind conflict, reason
                REQUEST_ID_REUSED: the request came with other records before.
        """
        digest = _digest(records) if request_id else b""
        answer = self._requests.pushed(pipeline.name, request_id) if request_id else None
        if answer is not None:
            rejections = _same(answer, digest).rejections
            return Pending(None, lambda: rejections)
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
        delivery = None
        if keyed:
            delivery = self._sink.begin(pipeline.record_topic, keyed, now, patience)
        mine = Pushed(digest, validated.rejections)
        return Pending(
            delivery, partial(self._settle, pipeline.name, request_id, mine, len(records))
        )

    def _settle(
        self, pipeline: str, request_id: str, mine: Pushed, records: int
    ) -> list[Rejection]:
        """Counts and remembers what was sent; the answer that the request gets."""
        rejected = len(mine.rejections)
        metrics.PUSHED.labels(pipeline, "accepted").inc(records - rejected)
        metrics.PUSHED.labels(pipeline, "rejected").inc(rejected)
        if not request_id:
            return mine.rejections
        answer = self._requests.answer(pipeline, request_id, mine, datetime.now(UTC))
        return _same(answer, mine.digest).rejections

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


class Pending:
    """Records on their way, or the answer that their request got before."""

    def __init__(self, delivery: Delivery | None, settle: Callable[[], list[Rejection]]) -> None:
        """Takes how they go, None where none does, and what is done when the broker has them."""
        self._delivery = delivery
        self._settle = settle

    def answer(self, seconds: float) -> list[Rejection]:
        """What is wrong, by row, when the broker has all records.

        Raises:
            EverloopError: kind unavailable, it does not have all of them after `seconds`; kind conflict, reason
                REQUEST_ID_REUSED: another call of the same request was quicker, with other records.
        """
        if self._delivery is not None:
            self._delivery.wait(seconds)
        return self._settle()


def _same(answer: Pushed, digest: bytes) -> Pushed:
    """The answer, if it was given to the same records."""
    if answer.digest != digest:
        raise reused()
    return answer


def _digest(records: Sequence[bytes]) -> bytes:
    """Names the records and where each of them ends."""
    found = hashlib.sha256()
    for record in records:
        found.update(len(record).to_bytes(8, "big"))
        found.update(record)
    return found.digest()
