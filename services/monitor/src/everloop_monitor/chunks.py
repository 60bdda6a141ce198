"""What arrives: predictions, counted into chunks; labels; promotions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_monitor import batches, metrics
from everloop_monitor.adapters import store
from everloop_monitor.domain import spans_of
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.telemetry import trace_headers

__all__ = ["Stream", "cut", "log_predictions", "record_actuals", "watch_version"]


@dataclass(frozen=True, slots=True)
class Stream:
    """How far the predictions of one model version are counted.

    Attributes:
        rows: predictions that arrived.
        chunks: full chunks among them.
        chunk_start: row where the open chunk starts.
    """

    rows: int = 0
    chunks: int = 0
    chunk_start: int = 0


def cut(stream: Stream, rows: int, chunk_rows: int) -> tuple[Stream, list[int]]:
    """Counts `rows` more predictions.

    Returns:
        The stream after them, and the first rows of the chunks that they filled.

    >>> cut(Stream(rows=90, chunks=0, chunk_start=0), 250, 100)
    (Stream(rows=340, chunks=3, chunk_start=300), [0, 100, 200])
    """
    end = stream.rows + rows
    starts = list(range(stream.chunk_start, end - chunk_rows + 1, chunk_rows))
    return Stream(
        end, stream.chunks + len(starts), stream.chunk_start + len(starts) * chunk_rows
    ), starts


def log_predictions(
    database: Database, event_id: str, message: PredictionsLogged, chunk_rows: int
) -> None:
    """Stores a batch of predictions once, and notes the chunks that it fills, in one transaction.

    Raises:
        EverloopError: kind invalid: the batch is malformed.
    """
    batches.check(message)
    rows = len(message.prediction_ids)
    spans = spans_of(list(message.prediction_ids))
    with database.unit_of_work() as work:
        if not work.first_time(event_id) or not rows:
            return
        pipeline, version = message.pipeline, message.model_version
        before = Stream(*store.stream(work.connection, pipeline, version))
        after, starts = cut(before, rows, chunk_rows)
        batch = batches.pack(event_id, before.rows, message)
        store.add_batch(work.connection, pipeline, version, rows, batch, spans)
        for number, first_row in enumerate(starts):
            store.add_chunk(
                work.connection,
                pipeline,
                version,
                before.chunks + number,
                first_row,
                chunk_rows,
                event_id,
                trace_headers().get("traceparent", ""),
            )
        store.set_stream(
            work.connection, pipeline, version, after.rows, after.chunks, after.chunk_start
        )
    metrics.PREDICTIONS.labels(pipeline).inc(rows)


def record_actuals(
    database: Database,
    event_id: str,
    pipeline: str,
    record_ids: Sequence[str],
    labels: Sequence[str],
    now: datetime,
) -> None:
    """Stores labels once, whether their predictions have come or not; a later label of a record replaces it.

    Raises:
        EverloopError: kind invalid: there is not one label per record.
    """
    if len(record_ids) != len(labels):
        raise EverloopError(
            Kind.INVALID,
            "MALFORMED_BATCH",
            f"{len(labels)} labels for {len(record_ids)} records",
            field="labels",
        )
    with database.unit_of_work() as work:
        if not work.first_time(event_id):
            return
        store.add_actuals(
            work.connection, pipeline, dict(zip(record_ids, labels, strict=True)), now
        )
    metrics.ACTUALS.labels(pipeline).inc(len(record_ids))


def watch_version(
    database: Database, event_id: str, pipeline: str, version: int, run_id: str, now: datetime
) -> None:
    """Notes which version serves from now on, and the run that holds its reference sample."""
    with database.unit_of_work() as work:
        if work.first_time(event_id):
            store.set_production(work.connection, pipeline, version, run_id, now)
