"""Records what arrives, once: predictions, counted into chunks; labels; versions and promotions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_monitor import batches, metrics
from everloop_monitor.adapters.store import chunks, decisions, labels, predictions, versions
from everloop_monitor.domain import spans_of
from everloop_monitor.stream import cut
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.telemetry import trace_headers

__all__ = [
    "expect_version",
    "fail_request",
    "log_predictions",
    "record_actuals",
    "refuse_version",
    "watch_version",
]


def log_predictions(
    database: Database, event_id: str, message: PredictionsLogged, chunk_rows: int, now: datetime
) -> int:
    """Stores a batch of predictions once, and notes the chunks that it fills, in one transaction.

    Returns:
        How many it fills.

    Raises:
        EverloopError: kind invalid: the batch is malformed.
    """
    batches.check(message)
    rows = len(message.prediction_ids)
    spans = spans_of(list(message.prediction_ids))
    with database.unit_of_work() as work:
        if not work.first_time(event_id) or not rows:
            return 0
        pipeline, version = message.pipeline, message.model_version
        before = predictions.stream(work.connection, pipeline, version)
        after, starts = cut(before, rows, chunk_rows)
        batch = batches.pack(event_id, before.rows, message)
        predictions.add(work.connection, pipeline, version, rows, batch, spans)
        for number, first_row in enumerate(starts):
            chunks.add(
                work.connection,
                pipeline,
                version,
                index=before.chunks + number,
                first_row=first_row,
                rows=chunk_rows,
                cause=event_id,
                trace=trace_headers().get("traceparent", ""),
                now=now,
            )
        predictions.set_stream(work.connection, pipeline, version, after)
    metrics.PREDICTIONS.labels(pipeline).inc(rows)
    return len(starts)


def record_actuals(
    database: Database,
    event_id: str,
    pipeline: str,
    record_ids: Sequence[str],
    values: Sequence[str],
    now: datetime,
) -> None:
    """Stores labels once, whether their predictions have come or not; a later label of a record replaces it.

    Raises:
        EverloopError: kind invalid: there is not one label per record.
    """
    if len(record_ids) != len(values):
        raise EverloopError(
            Kind.INVALID,
            "MALFORMED_BATCH",
            f"{len(values)} labels for {len(record_ids)} records",
            field="labels",
        )
    with database.unit_of_work() as work:
        if not work.first_time(event_id):
            return
        labels.add(work.connection, pipeline, dict(zip(record_ids, values, strict=True)), now)
    metrics.ACTUALS.labels(pipeline).inc(len(record_ids))


def expect_version(
    database: Database, event_id: str, pipeline: str, version: int, run_id: str
) -> None:
    """Notes the run that holds the reference sample of a version: it may predict on trial before it is promoted."""
    with database.unit_of_work() as work:
        if work.first_time(event_id):
            versions.add_candidate(work.connection, pipeline, version, run_id)


def watch_version(
    database: Database, event_id: str, pipeline: str, version: int, run_id: str, now: datetime
) -> None:
    """Notes which version serves from now on, and the run that holds its reference sample."""
    with database.unit_of_work() as work:
        if work.first_time(event_id):
            versions.set_production(work.connection, pipeline, version, run_id, now)
            decisions.answer(work.connection, pipeline, "promoted", version=version)


def refuse_version(database: Database, event_id: str, pipeline: str, version: int) -> None:
    """Notes that a version which was trained because of drift will not serve."""
    with database.unit_of_work() as work:
        if work.first_time(event_id):
            decisions.answer(work.connection, pipeline, "rejected", version=version)


def fail_request(database: Database, event_id: str, pipeline: str, request_id: str) -> None:
    """Notes that a training failed; of one that no request of ours caused, nothing."""
    with database.unit_of_work() as work:
        if work.first_time(event_id) and request_id:
            decisions.answer(work.connection, pipeline, "failed", request_id=request_id)
