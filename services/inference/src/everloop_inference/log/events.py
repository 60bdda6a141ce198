"""Buffered predictions as `PredictionsLogged` events, by columns.

Columns of numbers go from NumPy's bytes to the wire: packed doubles are just that. The rest of an event is a message
without columns; bytes of two messages one behind the other are the bytes of both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop_contracts.events import INFERENCE
from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column, PredictionsLogged
from everloop_features.inputs import NULL_TIME, Block, InputSpec
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.ports import Message
from everloop_runtime.events import encode, new_event

__all__ = ["Entry", "messages"]

MAX_BYTES = 900_000
"""Size of an event above which it is split: a broker refuses 1 MiB by default."""
_COLUMN = PredictionsLogged.DESCRIPTOR.fields_by_name["columns"].number << 3 | 2
_NUMBERS = Column.DESCRIPTOR.fields_by_name["numbers"].number << 3 | 2


@dataclass(frozen=True, slots=True)
class Entry:
    """Rows of one batch, as the buffer holds them.

    Attributes:
        answer: what was said.
        block: what it was said about.
        record_ids: one per row; empty where its caller gave none.
        latency_micros: one per row, from the complete request to its answer.
        time_micros: when it was said, microseconds since 1970-01-01 UTC.
        rows: positions of the rows that are logged; all of them where None.
        size: memory that the entry takes, in bytes.
    """

    answer: Answer
    block: Block
    record_ids: Sequence[str]
    latency_micros: Sequence[int]
    time_micros: int
    rows: npt.NDArray[np.intp] | None
    size: int

    @property
    def count(self) -> int:
        """Rows that are logged."""
        return len(self.answer.scores) if self.rows is None else len(self.rows)


def messages(entries: Sequence[Entry], max_rows: int) -> Iterator[Message]:
    """Turns entries into events of one version and at most `max_rows` rows each.

    Entries keep their order among those of their version: two versions that take turns make two events, not one for
    each turn.
    """
    groups: dict[ServedModel, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.answer.model, []).append(entry)
    for group in groups.values():
        batch: list[Entry] = []
        count = 0
        for entry in group:
            if batch and count + entry.count > max_rows:
                yield from _events(batch, max_rows)
                batch, count = [], 0
            batch.append(entry)
            count += entry.count
        yield from _events(batch, max_rows)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of several entries, one behind the other."""

    block: Block
    probabilities: npt.NDArray[np.float32]
    ids: list[str]
    records: list[str]
    times: list[int]
    latencies: list[int]
    labels: list[str]
    scores: list[float]

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> _Rows:
        return cls(
            Block.joined(
                [
                    item.block if item.rows is None else item.block.take(item.rows)
                    for item in entries
                ]
            ),
            np.concatenate(
                [
                    item.answer.probabilities
                    if item.rows is None
                    else item.answer.probabilities[item.rows]
                    for item in entries
                ]
            ),
            _logged(entries, lambda item: item.answer.prediction_ids),
            _logged(entries, lambda item: item.record_ids),
            [time for item in entries for time in [item.time_micros] * item.count],
            _logged(entries, lambda item: item.latency_micros),
            _logged(entries, lambda item: item.answer.labels),
            _logged(entries, lambda item: item.answer.scores),
        )


def _logged(entries: Sequence[Entry], values: Callable[[Entry], Sequence[Any]]) -> list[Any]:
    """Values of the rows that are logged; none where there are none."""
    return list(
        chain.from_iterable(
            found if item.rows is None or not found else [found[row] for row in item.rows.tolist()]
            for item in entries
            for found in (values(item),)
        )
    )


def _events(entries: Sequence[Entry], max_rows: int) -> Iterator[Message]:
    model = entries[0].answer.model
    rows = _Rows.of(entries)
    count = len(rows.ids)
    parts = [slice(at, min(at + max_rows, count)) for at in range(0, count, max_rows)]
    while parts:
        part = parts.pop(0)
        size = part.stop - part.start
        value = _value(model, rows, part)
        if len(value) > MAX_BYTES and size > 1:
            middle = part.start + size // 2
            parts[:0] = [slice(part.start, middle), slice(middle, part.stop)]
            continue
        event = new_event(INFERENCE, model.name, PredictionsLogged())
        key, _, headers = encode(event)
        yield Message(model.name, size, event.topic, key, value, tuple(headers))


def _value(model: ServedModel, rows: _Rows, part: slice) -> bytes:
    """An event's message."""
    multiclass = len(model.classes) > 2
    records = rows.records[part]
    rest = PredictionsLogged(
        pipeline=model.name,
        model_version=model.version,
        prediction_ids=rows.ids[part],
        record_ids=records if any(records) else (),
        time_micros=rows.times[part],
        latency_micros=rows.latencies[part],
        labels=rows.labels[part],
        scores=() if multiclass else rows.scores[part],
        probabilities=rows.probabilities[part].ravel().tolist() if multiclass else (),
        shadow=model.shadow,
    )
    pieces = [rest.SerializeToString()]
    for spec in model.inputs:
        column = _column(model, spec, rows.block, part)
        pieces += (_prefix(_COLUMN, len(column)), column)
    return b"".join(pieces)


def _column(model: ServedModel, spec: InputSpec, block: Block, part: slice) -> bytes:
    """A column's message."""
    values = model.layout.column(block, spec.name)[part]
    redacted = spec.name in model.policy.log_redact
    if spec.type is FieldType.STRING:
        texts = [""] * len(values) if redacted else values.tolist()
        # The model takes "" for null: where null is allowed the two are one.
        nulls = [row for row, text in enumerate(texts) if not text] if "" in texts else ()
        if not (spec.nullable or redacted):
            nulls = ()
        column = Column(name=spec.name, texts=texts, null_rows=nulls, redacted=redacted)
        return column.SerializeToString()
    if redacted:
        values = np.full(len(values), np.nan)
    elif spec.type is FieldType.TIMESTAMP:
        values = np.where(values == NULL_TIME, np.nan, values)
    numbers = values.astype("<f8").tobytes()
    rest = Column(name=spec.name, redacted=redacted).SerializeToString()
    return b"".join((rest, _prefix(_NUMBERS, len(numbers)), numbers))


def _prefix(tag: int, length: int) -> bytes:
    """What stands before bytes of a field: its tag and their number, which is a varint."""
    found = [tag]
    while length > 127:
        found.append(length & 127 | 128)
        length >>= 7
    found.append(length)
    return bytes(found)
