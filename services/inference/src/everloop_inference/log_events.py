"""Buffered predictions as `PredictionsLogged` events, by columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import Column, PredictionsLogged
from everloop_features.inputs import NULL_TIME, Block, InputSpec
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.ports import Message
from everloop_runtime.events import encode, new_event

__all__ = ["Entry", "messages"]

SOURCE = "inference"
MAX_BYTES = 900_000
"""Size of an event above which it is split: a broker refuses 1 MiB by default."""


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


def _events(entries: Sequence[Entry], max_rows: int) -> Iterator[Message]:
    model = entries[0].answer.model
    block = Block.joined(
        [entry.block if entry.rows is None else entry.block.take(entry.rows) for entry in entries]
    )
    whole = [
        (
            entry.answer.prediction_ids[row],
            entry.record_ids[row],
            entry.time_micros,
            entry.latency_micros[row],
            entry.answer.labels[row] if model.classes else "",
            entry.answer.scores[row],
        )
        for entry in entries
        for row in (range(entry.count) if entry.rows is None else entry.rows.tolist())
    ]
    probabilities = np.concatenate(
        [
            entry.answer.probabilities
            if entry.rows is None
            else entry.answer.probabilities[entry.rows]
            for entry in entries
        ]
    )
    parts = [slice(start, start + max_rows) for start in range(0, len(whole), max_rows)]
    while parts:
        part = parts.pop(0)
        rows = whole[part]
        event = new_event(SOURCE, model.name, _data(model, rows, block, probabilities, part))
        key, value, headers = encode(event)
        if len(value) > MAX_BYTES and len(rows) > 1:
            middle = part.start + len(rows) // 2
            parts[:0] = [slice(part.start, middle), slice(middle, part.start + len(rows))]
            continue
        yield Message(model.name, len(rows), event.topic, key, value, tuple(headers))


def _data(
    model: ServedModel,
    rows: Sequence[tuple[str, str, int, int, str, float]],
    block: Block,
    probabilities: npt.NDArray[np.float32],
    part: slice,
) -> PredictionsLogged:
    ids, records, times, latencies, labels, scores = zip(*rows, strict=True)
    multiclass = len(model.classes) > 2
    return PredictionsLogged(
        pipeline=model.name,
        model_version=model.version,
        prediction_ids=ids,
        record_ids=records if any(records) else (),
        time_micros=times,
        latency_micros=latencies,
        columns=[_column(model, spec, block, part) for spec in model.inputs],
        labels=labels if model.classes else (),
        scores=() if multiclass else scores,
        probabilities=probabilities[part].ravel().tolist() if multiclass else (),
        shadow=model.shadow,
    )


def _column(model: ServedModel, spec: InputSpec, block: Block, part: slice) -> Column:
    values = model.layout.column(block, spec.name)[part]
    if spec.name in model.policy.log_redact:
        return _redacted(spec, len(values))
    if spec.type is FieldType.STRING:
        # The model takes "" for null: where null is allowed the two are one.
        nulls = np.flatnonzero(values == "").tolist() if spec.nullable else ()
        return Column(name=spec.name, texts=values.tolist(), null_rows=nulls)
    if spec.type is FieldType.TIMESTAMP:
        values = np.where(values == NULL_TIME, np.nan, values)
    return Column(name=spec.name, numbers=values.tolist())


def _redacted(spec: InputSpec, rows: int) -> Column:
    """As many nulls as there are rows."""
    if spec.type is FieldType.STRING:
        return Column(name=spec.name, texts=[""] * rows, null_rows=range(rows), redacted=True)
    return Column(name=spec.name, numbers=[math.nan] * rows, redacted=True)
