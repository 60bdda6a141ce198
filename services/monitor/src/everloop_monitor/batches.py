"""Batches of predictions as they are stored: the event's bytes, compressed, read by columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everloop_contracts.pipeline import FieldSpec, FieldType, Pipeline
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column, PredictionsLogged
from everloop_monitor.domain import Prediction, Rows
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Batch", "check", "find", "pack", "read_rows"]

_NUMBERS = (FieldType.INT, FieldType.FLOAT)
_BOOLS = np.array(["false", "true"], dtype=object)


@dataclass(frozen=True, slots=True)
class Batch:
    """A stored batch.

    Attributes:
        event_id: event that brought it.
        first_row: position of its first row among the rows of its model version, in order of arrival.
        size: bytes of `data` before compression.
        data: a compressed PredictionsLogged.
    """

    event_id: str
    first_row: int
    size: int
    data: bytes

    def open(self) -> PredictionsLogged:
        """The event that was stored."""
        return PredictionsLogged.FromString(
            pa.decompress(self.data, decompressed_size=self.size, codec="zstd", asbytes=True)
        )


def pack(event_id: str, first_row: int, message: PredictionsLogged) -> Batch:
    """A batch ready to be stored; 5,000 flights take 0.16 MB of 0.83 MB."""
    raw = message.SerializeToString()
    return Batch(event_id, first_row, len(raw), pa.compress(raw, codec="zstd", asbytes=True))


def check(message: PredictionsLogged) -> None:
    """Checks that every column has a value per row; what the contract lets a batch leave out may be empty.

    Raises:
        EverloopError: kind invalid, reason MALFORMED_BATCH.
    """
    rows = len(message.prediction_ids)
    lengths = {
        "record_ids": len(message.record_ids) or rows,
        "time_micros": len(message.time_micros),
        "scores": len(message.scores) or (rows if message.probabilities else 0),
        "labels": len(message.labels) or rows,
        **{column.name: len(column.numbers) or len(column.texts) for column in message.columns},
    }
    for name, length in lengths.items():
        if length != rows:
            raise EverloopError(
                Kind.INVALID,
                "MALFORMED_BATCH",
                f"{name} has {length} values for {rows} predictions",
                field=name,
            )


def find(batch: Batch, prediction_id: str) -> Prediction | None:
    """The prediction with this id, if the batch holds it."""
    message = batch.open()
    try:
        row = list(message.prediction_ids).index(prediction_id)
    except ValueError:
        return None
    return Prediction(
        id=prediction_id,
        pipeline=message.pipeline,
        version=message.model_version,
        record_id=message.record_ids[row] if message.record_ids else "",
        time_micros=message.time_micros[row],
        label=message.labels[row] if message.labels else "",
        score=message.scores[row] if message.scores else 0.0,
        event_id=batch.event_id,
    )


def read_rows(pipeline: Pipeline, batches: Sequence[Batch], first_row: int, rows: int) -> Rows:
    """Reads `rows` rows from row `first_row` on; a column that a batch lacks is null there.

    Args:
        pipeline: says which columns there are and where the event time is.
        batches: the stored batches that hold the rows, in order.
        first_row: position of the first row among those of the model version.
        rows: how many.
    """
    parts = []
    for batch in batches:
        message = batch.open()
        start = max(first_row - batch.first_row, 0)
        stop = min(first_row + rows - batch.first_row, len(message.prediction_ids))
        parts.append(
            (message, {column.name: column for column in message.columns}, slice(start, stop))
        )

    def numbers(name: str) -> NDArray[np.float64]:
        return np.concatenate([_numbers(columns.get(name), cut) for _, columns, cut in parts])

    def texts(name: str, spec: FieldSpec) -> NDArray[np.object_]:
        return np.concatenate([_texts(columns.get(name), cut, spec) for _, columns, cut in parts])

    fields = {n: s for n, s in pipeline.inputs.items() if s.type is not FieldType.TIMESTAMP}
    times = np.concatenate(
        [np.array(message.time_micros[cut], dtype=np.int64) for message, _, cut in parts]
    )
    first_event, last_event = _event_times(pipeline, numbers(pipeline.schema_.time), times)
    return Rows(
        numbers={name: numbers(name) for name, spec in fields.items() if spec.type in _NUMBERS},
        texts={
            name: texts(name, spec) for name, spec in fields.items() if spec.type not in _NUMBERS
        },
        scores=np.concatenate([_scores(message, cut) for message, _, cut in parts]),
        labels=np.concatenate([_strings(message.labels, cut) for message, _, cut in parts]),
        record_ids=[
            record
            for message, _, cut in parts
            for record in _strings(message.record_ids, cut).tolist()
        ],
        first_event=first_event,
        last_event=last_event,
    )


def _numbers(column: Column | None, cut: slice) -> NDArray[np.float64]:
    if column is None:
        return np.full(cut.stop - cut.start, np.nan)
    return np.array(column.numbers[cut], dtype=np.float64)


def _texts(column: Column | None, cut: slice, spec: FieldSpec) -> NDArray[np.object_]:
    if column is None:
        return np.full(cut.stop - cut.start, "", dtype=object)
    if spec.type is FieldType.BOOL:
        values = np.array(column.numbers[cut], dtype=np.float64)
        null = np.isnan(values)
        return np.where(null, "", _BOOLS[(np.where(null, 0.0, values) != 0).astype(int)])
    return np.array(column.texts[cut], dtype=object)


def _scores(message: PredictionsLogged, cut: slice) -> NDArray[np.float64]:
    """Scores of the rows; 0 where the model has several classes, which have no score."""
    if not message.scores:
        return np.zeros(cut.stop - cut.start)
    return np.array(message.scores[cut], dtype=np.float64)


def _strings(values: Sequence[str], cut: slice) -> NDArray[np.object_]:
    """Values of the rows; "" where the batch leaves them out."""
    if not values:
        return np.full(cut.stop - cut.start, "", dtype=object)
    return np.array(values[cut], dtype=object)


def _event_times(
    pipeline: Pipeline, local_seconds: NDArray[np.float64], time_micros: NDArray[np.int64]
) -> tuple[datetime, datetime]:
    known = local_seconds[~np.isnan(local_seconds)]
    if len(known):
        zone = pipeline.schema_.fields[pipeline.schema_.time].zone
        return _from_wall_clock(known.min(), zone), _from_wall_clock(known.max(), zone)
    return (
        datetime.fromtimestamp(time_micros.min() / 1e6, UTC),
        datetime.fromtimestamp(time_micros.max() / 1e6, UTC),
    )


def _from_wall_clock(seconds: float, zone: ZoneInfo) -> datetime:
    """UTC of seconds that count the wall clock of a zone since 1970-01-01."""
    return datetime.fromtimestamp(seconds, UTC).replace(tzinfo=zone).astimezone(UTC)
