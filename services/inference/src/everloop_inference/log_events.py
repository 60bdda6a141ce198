"""Buffered predictions as `PredictionsLogged` events, by columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column, PredictionsLogged
from everloop_features.inputs import NULL_TIME, Feeds, InputSpec
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.ports import Message
from everloop_runtime.events import encode, new_event

__all__ = ["Entry", "messages"]

SOURCE = "inference"
MAX_BYTES = 900_000
"""Size of an event above which it is split: a broker refuses 1 MiB by default."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Rows of one request, as the buffer holds them.

    Attributes:
        answer: what was said.
        feeds: what it was said about.
        record_ids: one per row; empty where the caller gave none.
        time_micros: when it was said, microseconds since 1970-01-01 UTC.
        rows: positions of the rows that are logged; all of them where None.
        size: memory that the entry takes, in bytes.
    """

    answer: Answer
    feeds: Feeds
    record_ids: Sequence[str]
    time_micros: int
    rows: npt.NDArray[np.intp] | None
    size: int

    @property
    def count(self) -> int:
        """Rows that are logged."""
        return len(self.answer.scores) if self.rows is None else len(self.rows)


def messages(entries: Sequence[Entry], max_rows: int) -> Iterator[Message]:
    """Turns entries into events of one version and at most `max_rows` rows each, keeping their order."""
    for _, group in groupby(entries, key=lambda entry: id(entry.answer.model)):
        batch: list[Entry] = []
        count = 0
        for entry in group:
            if batch and count + entry.count > max_rows:
                yield from _events(batch, max_rows)
                batch, count = [], 0
            batch.append(entry)
            count += entry.count
        yield from _events(batch, max_rows)


def _events(entries: Sequence[Entry], max_rows: int) -> Iterator[Message]:
    model = entries[0].answer.model
    columns = {spec.name: _joined(entries, spec.name) for spec in model.inputs}
    whole = [
        (
            entry.answer.prediction_ids[row],
            entry.record_ids[row] if entry.record_ids else "",
            entry.time_micros,
            entry.answer.labels[row] if model.classes else "",
            entry.answer.scores[row],
        )
        for entry in entries
        for row in (range(entry.count) if entry.rows is None else entry.rows.tolist())
    ]
    probabilities = np.concatenate([_kept(entry.answer.probabilities, entry) for entry in entries])
    parts = [slice(start, start + max_rows) for start in range(0, len(whole), max_rows)]
    while parts:
        part = parts.pop(0)
        rows = whole[part]
        event = new_event(SOURCE, model.name, _data(model, rows, columns, probabilities, part))
        key, value, headers = encode(event)
        if len(value) > MAX_BYTES and len(rows) > 1:
            middle = part.start + len(rows) // 2
            parts[:0] = [slice(part.start, middle), slice(middle, part.start + len(rows))]
            continue
        yield Message(model.name, len(rows), event.topic, key, value, tuple(headers))


def _data(
    model: ServedModel,
    rows: Sequence[tuple[str, str, int, str, float]],
    columns: Mapping[str, npt.NDArray[np.generic]],
    probabilities: npt.NDArray[np.float32],
    part: slice,
) -> PredictionsLogged:
    ids, records, times, labels, scores = zip(*rows, strict=True)
    multiclass = len(model.classes) > 2
    return PredictionsLogged(
        pipeline=model.name,
        model_version=model.version,
        prediction_ids=ids,
        record_ids=records if any(records) else (),
        time_micros=times,
        columns=[_column(spec, columns[spec.name][part]) for spec in model.inputs],
        labels=labels if model.classes else (),
        scores=() if multiclass else scores,
        probabilities=probabilities[part].ravel().tolist() if multiclass else (),
    )


def _kept(values: npt.NDArray[np.float32], entry: Entry) -> npt.NDArray[np.float32]:
    return values if entry.rows is None else values[entry.rows]


def _joined(entries: Sequence[Entry], name: str) -> npt.NDArray[np.generic]:
    return np.concatenate([_kept(entry.feeds[name], entry) for entry in entries]).reshape(-1)


def _column(spec: InputSpec, values: npt.NDArray[np.generic]) -> Column:
    if spec.type is FieldType.STRING:
        # The model takes "" for null: where null is allowed the two are one.
        nulls = np.flatnonzero(values == "").tolist() if spec.nullable else ()
        return Column(name=spec.name, texts=values.tolist(), null_rows=nulls)
    if spec.type is FieldType.TIMESTAMP:
        values = np.where(values == NULL_TIME, np.nan, values)
    return Column(name=spec.name, numbers=values.tolist())
