"""Batches of predictions as they are stored: the event's bytes, compressed, read by columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column, PredictionsLogged
from everloop_monitor.domain import Prediction, Rows
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Batch", "check", "find", "pack", "read_record_ids", "read_rows"]

_BOOLS = np.array(["false", "true"], dtype=object)
# Seconds since 1970-01-01 that `datetime` can hold in every time zone.
_EARLIEST = datetime(1, 1, 2, tzinfo=UTC).timestamp()
_LATEST = datetime(9999, 12, 30, tzinfo=UTC).timestamp()


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
    lengths = [("time_micros", len(message.time_micros))]
    if not message.scores and not message.probabilities:
        lengths.append(("scores", 0))
    optional: dict[str, Sequence[object]] = {
        "record_ids": message.record_ids,
        "scores": message.scores,
        "labels": message.labels,
    }
    lengths += [(name, len(values)) for name, values in optional.items() if values]
    for column in message.columns:
        found = {len(column.numbers), len(column.texts)} - {0} or {0}
        lengths += [(column.name, length) for length in found]
    for name, length in lengths:
        if length != rows:
            raise _malformed(name, f"{name} has {length} values for {rows} predictions")
    times = _array(message.time_micros, np.int64) / 1e6
    if len(times) and not (times.min() >= _EARLIEST and times.max() <= _LATEST):
        raise _malformed("time_micros", "time_micros lie outside of the years 1 to 9999")


def _malformed(field: str, text: str) -> EverloopError:
    return EverloopError(Kind.INVALID, "MALFORMED_BATCH", text, field=field)


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
        shadow=message.shadow,
    )


def read_record_ids(batches: Sequence[Batch], first_row: int, rows: int) -> list[str]:
    """Record ids of `rows` rows from row `first_row` on; "" where the caller gave none."""
    return [
        record
        for message, cut in _parts(batches, first_row, rows)
        for record in _strings(message.record_ids, cut).tolist()
    ]


def read_rows(pipeline: Pipeline, batches: Sequence[Batch], first_row: int, rows: int) -> Rows:
    """Reads `rows` rows from row `first_row` on; a column that a batch lacks is null there.

    Args:
        pipeline: says which columns there are and where the event time is.
        batches: the stored batches that hold the rows, in order.
        first_row: position of the first row among those of the model version.
        rows: how many.
    """
    parts = _parts(batches, first_row, rows)
    columns = [{column.name: column for column in message.columns} for message, _ in parts]

    def joined(read: Callable[[Column | None, slice], NDArray[Any]], name: str) -> NDArray[Any]:
        found = zip(columns, parts, strict=True)
        return np.concatenate([read(known.get(name), cut) for known, (_, cut) in found])

    numbers: dict[str, NDArray[np.float64]] = {}
    texts: dict[str, NDArray[np.object_]] = {}
    for name, spec in pipeline.inputs.items():
        if spec.type in (FieldType.INT, FieldType.FLOAT):
            numbers[name] = _finite(joined(_numbers, name))
        elif spec.type is FieldType.BOOL:
            texts[name] = _bools(_finite(joined(_numbers, name)))
        elif spec.type is FieldType.STRING:
            texts[name] = joined(_texts, name)
    first_event, last_event = _event_times(
        pipeline,
        joined(_numbers, pipeline.schema_.time),
        np.concatenate([_array(m.time_micros, np.int64)[cut] for m, cut in parts]),
    )
    return Rows(
        numbers=numbers,
        texts=texts,
        scores=np.concatenate([_scores(message, cut) for message, cut in parts]),
        labels=np.concatenate([_strings(message.labels, cut) for message, cut in parts]),
        record_ids=[record for m, cut in parts for record in _strings(m.record_ids, cut).tolist()],
        first_event=first_event,
        last_event=last_event,
    )


def _parts(
    batches: Sequence[Batch], first_row: int, rows: int
) -> list[tuple[PredictionsLogged, slice]]:
    """Each batch, opened, and which of its rows are wanted."""
    parts = []
    for batch in batches:
        message = batch.open()
        start = max(first_row - batch.first_row, 0)
        stop = min(first_row + rows - batch.first_row, len(message.prediction_ids))
        parts.append((message, slice(start, stop)))
    return parts


def _array(values: Sequence[Any], kind: type[np.generic]) -> NDArray[Any]:
    """A repeated field in one copy: cutting it first would make a Python object of each value, at 80 times the cost."""
    return np.asarray(values, dtype=kind)


def _numbers(column: Column | None, cut: slice) -> NDArray[np.float64]:
    """Values of the rows as they were sent; NaN where null."""
    if column is None or not column.numbers:
        return np.full(cut.stop - cut.start, np.nan)
    return _array(column.numbers, np.float64)[cut]


def _finite(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN also where a value is infinite for the model: no distance is defined for it."""
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


def _bools(values: NDArray[np.float64]) -> NDArray[np.object_]:
    null = np.isnan(values)
    return np.where(null, "", _BOOLS[(np.where(null, 0.0, values) != 0).astype(int)])


def _texts(column: Column | None, cut: slice) -> NDArray[np.object_]:
    return _strings(column.texts if column is not None else (), cut)


def _scores(message: PredictionsLogged, cut: slice) -> NDArray[np.float64]:
    """Scores of the rows; 0 where the model has several classes, which have no score."""
    if not message.scores:
        return np.zeros(cut.stop - cut.start)
    return _array(message.scores, np.float64)[cut]


def _strings(values: Sequence[str], cut: slice) -> NDArray[np.object_]:
    """Values of the rows; "" where the batch leaves them out."""
    if not values:
        return np.full(cut.stop - cut.start, "", dtype=object)
    return np.array(values[cut], dtype=object)


def _event_times(
    pipeline: Pipeline, local_seconds: NDArray[np.float64], time_micros: NDArray[np.int64]
) -> tuple[datetime, datetime]:
    # A client's tensor may hold any number for a time: what no calendar holds says nothing.
    known = local_seconds[(local_seconds >= _EARLIEST) & (local_seconds <= _LATEST)]
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
