"""From messages to one Arrow batch of the pipeline's schema, and the reasons of those that are not in it.

Whole columns are checked at once; single values are looked at only in a column that holds a broken one. What each
column is held to is in `columns`, what columns are held to together in `rules`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from everloop_contracts.pipeline import FieldSpec, FieldType, Pipeline
from everloop_ingest.columns import ARROW, Broken, nulls, read_column, show, sound
from everloop_ingest.domain import Reason, Rejection
from everloop_ingest.formats import from_protobuf
from everloop_ingest.json_lines import JsonLines
from everloop_ingest.rules import RowRules
from everloop_runtime.errors import not_json

__all__ = ["Validated", "Validator", "arrow_schema"]

_NONE = type(None)
_MANY = 64
"""Messages from which on it pays to read all of them at once."""


def arrow_schema(pipeline: Pipeline) -> pa.Schema:
    """The schema of accepted rows: the fields in the pipeline's order, all nullable (late labels leave gaps)."""
    fields = pipeline.schema_.fields.items()
    return pa.schema([pa.field(name, ARROW[spec.type]) for name, spec in fields])


@dataclass(frozen=True, slots=True)
class Validated:
    """What became of a batch of messages.

    Attributes:
        rows: accepted rows in the order of their messages, schema as `arrow_schema` says.
        positions: for each row the position of its message, int64, increasing.
        actuals: for each row whether it is a late label; then only id, target and perhaps the time are set.
        rejections: the other messages, by position.
    """

    rows: pa.RecordBatch
    positions: pa.Int64Array
    actuals: pa.BooleanArray
    rejections: list[Rejection]


class Validator:
    """Validates messages of one pipeline.

    A message is one flat JSON object, or the same as Protobuf. A nullable field may be absent. A message with the
    record id, the target and at most the time is a late label (an actual), unless the schema has no other field.
    """

    def __init__(self, pipeline: Pipeline, max_bytes: int) -> None:
        """Takes the pipeline and the largest message in bytes, which the pipeline's own limit may go below.

        Raises:
            pyarrow.ArrowInvalid: the machine has no time zone data.
        """
        schema = pipeline.schema_
        self.schema = arrow_schema(pipeline)
        self._fields = schema.fields
        self._names = tuple(schema.fields)
        self._id, self._time, self._target = schema.id, schema.time, pipeline.target.field
        self._required = [name for name, spec in schema.fields.items() if not spec.nullable]
        self._rules = RowRules(pipeline)
        self._lines = JsonLines(schema.fields)
        # What has such a field is no late label.
        self._tells_labels = not {self._id, self._time, self._target}.issuperset(self._required)
        self._max_bytes = min(max_bytes, schema.max_record_bytes or max_bytes)
        self._nulls = dict.fromkeys(self._names)
        self._values: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*self._names)
        for spec in schema.fields.values():
            if spec.type is FieldType.TIMESTAMP:
                read_column(spec, ["2000-01-01T00:00:00"], {str})

    def __call__(
        self,
        messages: Sequence[bytes | None],
        timestamps: Sequence[int] | None = None,
        protobuf: Collection[int] = (),
    ) -> Validated:
        """Validates messages; every one of them is either a row or a rejection.

        Args:
            messages: bodies.
            timestamps: Kafka timestamps, milliseconds since 1970-01-01 UTC, against which their freshness is judged;
                now where not given.
            protobuf: positions of the bodies that are Protobuf; the others are JSON.
        """
        if len(messages) >= _MANY and not protobuf:
            validated = self._by_columns(messages, timestamps)
            if validated is not None:
                return validated
        return self._one_by_one(messages, timestamps, protobuf)

    def _one_by_one(
        self,
        messages: Sequence[bytes | None],
        timestamps: Sequence[int] | None,
        protobuf: Collection[int],
    ) -> Validated:
        """What became of messages that are parsed one by one: any of them may be any."""
        rejections: dict[int, Rejection] = {}
        records, positions, actuals = self._parse(messages, protobuf, rejections)
        columns = list(zip(*map(self._values, records), strict=True)) or [()] * len(self._names)
        late = {row for row, actual in enumerate(actuals) if actual}
        arrays = []
        for (name, spec), values in zip(self._fields.items(), columns, strict=True):
            array, broken = self._column(name, spec, values, late)
            for row, (reason, text) in broken.items():
                position = positions[row]
                rejections.setdefault(position, Rejection(position, reason, name, text))
            arrays.append(array)
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        if self._rules:
            came = _came(messages, timestamps)
            labels = pa.array(actuals, pa.bool_())
            for row, reason, name, text in self._rules(
                rows, came.take(pa.array(positions, pa.int64())), labels
            ):
                position = positions[row]
                rejections.setdefault(position, Rejection(position, reason, name, text))
        kept, is_actual = pa.array(positions, pa.int64()), pa.array(actuals, pa.bool_())
        if rejections:
            mask = pa.array([position not in rejections for position in positions], pa.bool_())
            rows, kept, is_actual = rows.filter(mask), kept.filter(mask), is_actual.filter(mask)
        return Validated(rows, kept, is_actual, [rejections[row] for row in sorted(rejections)])

    def _by_columns(
        self, messages: Sequence[bytes | None], timestamps: Sequence[int] | None
    ) -> Validated | None:
        """What one by one would give, most of it by columns: only what lacks a field, as labels do, is looked at alone.

        None where another message needs that look.
        """
        if (
            not self._tells_labels
            or max(len(message or b"") for message in messages) > self._max_bytes
        ):
            return None
        columns = self._lines.read(messages)
        if columns is None:
            return None
        validity = [
            values.is_valid()
            for name, values in zip(self._names, columns, strict=True)
            if name in self._required
        ]
        whole = functools.reduce(pc.and_, validity)
        if whole.true_count == len(messages):
            return self._ordinary(columns, _came(messages, timestamps))
        if not whole.true_count:
            return None
        kept, others = (pc.indices_nonzero(of).cast(pa.int64()) for of in (whole, pc.invert(whole)))
        records = [values.filter(whole) for values in columns]
        ordinary = self._ordinary(records, _came(messages, timestamps).filter(whole))
        if ordinary is None:
            return None
        positions = others.to_pylist()
        odd = self._one_by_one(
            [messages[position] for position in positions],
            timestamps and [timestamps[position] for position in positions],
            (),
        )
        at = pa.concat_arrays([kept, others.take(odd.positions)])
        order = pc.sort_indices(at)
        labels = pa.concat_arrays([ordinary.actuals, odd.actuals])
        return Validated(
            pa.concat_batches([ordinary.rows, odd.rows]).take(order),
            at.take(order),
            labels.take(order),
            [replace(item, row=positions[item.row]) for item in odd.rejections],
        )

    def _ordinary(self, columns: Sequence[pa.Array], came: pa.Int64Array) -> Validated | None:
        """Records with all of their fields as rows; None where one of them breaks the contract."""
        count = len(came)
        arrays = []
        for (name, spec), values in zip(self._fields.items(), columns, strict=True):
            array = sound(spec, values)
            if array is None or (name == self._id and pc.equal(array, "").true_count):
                return None
            arrays.append(array)
        rows = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        labels = pa.repeat(False, count)
        if self._rules and any(self._rules(rows, came, labels)):
            return None
        return Validated(rows, pa.array(range(count), pa.int64()), labels, [])

    def _parse(
        self,
        messages: Sequence[bytes | None],
        protobuf: Collection[int],
        rejections: dict[int, Rejection],
    ) -> tuple[list[dict[str, Any]], list[int], list[bool]]:
        """The messages that are objects of a known shape: objects, their positions, whether late labels."""
        records: list[dict[str, Any]] = []
        positions: list[int] = []
        actuals: list[bool] = []
        shapes: dict[tuple[str, ...], _Shape] = {}
        for position, message in enumerate(messages):
            if message is not None and len(message) > self._max_bytes:
                text = f"{len(message)} bytes, at most {self._max_bytes} are accepted"
                rejections[position] = Rejection(position, Reason.RECORD_TOO_LARGE, "", text)
                continue
            if not message:
                text = "the message has no value; a tombstone deletes nothing here"
                rejections[position] = Rejection(position, Reason.MALFORMED_JSON, "", text)
                continue
            try:
                record = from_protobuf(message) if position in protobuf else orjson.loads(message)
            except DecodeError as error:
                reason = Reason.MALFORMED_PROTOBUF
                rejections[position] = Rejection(position, reason, "", str(error))
                continue
            except orjson.JSONDecodeError as error:
                rejections[position] = Rejection(
                    position, Reason.MALFORMED_JSON, "", not_json(error)
                )
                continue
            if type(record) is not dict:
                text = f"a record is a JSON object, this is {show(record)}"
                rejections[position] = Rejection(position, Reason.NOT_AN_OBJECT, "", text)
                continue
            keys = tuple(record)
            shape = shapes.get(keys)
            if shape is None:
                shape = shapes[keys] = self._shape(keys)
            if shape.wrong:
                reason, name, text = shape.wrong
                rejections[position] = Rejection(position, reason, name, text)
                continue
            records.append(record if shape.complete else self._nulls | record)
            positions.append(position)
            actuals.append(shape.actual)
        return records, positions, actuals

    def _shape(self, keys: tuple[str, ...]) -> _Shape:
        present = set(keys)
        if unknown := [key for key in keys if key not in self._fields]:
            text = f"the schema has no field {show(unknown[0])}"
            return _Shape(wrong=(Reason.UNKNOWN_FIELD, unknown[0][:200], text))
        complete = len(present) == len(self._fields)
        label_only = present <= {self._id, self._time, self._target}
        if label_only and not complete and {self._id, self._target} <= present:
            return _Shape(actual=True)
        if missing := [name for name in self._required if name not in present]:
            return _Shape(wrong=(Reason.MISSING_FIELD, missing[0], f"{missing[0]} is missing"))
        return _Shape(complete=complete)

    def _column(
        self, name: str, spec: FieldSpec, values: Sequence[Any], late: set[int]
    ) -> tuple[pa.Array, Broken]:
        """One column as an array, null where broken, and the broken rows."""
        types = set(map(type, values))
        array, broken = read_column(spec, values, types)
        if _NONE in types and late and name == self._target:
            broken |= nulls(values, sorted(late), "a late label holds a label")
        if _NONE in types and not spec.nullable:
            rows = [row for row in range(len(values)) if row not in late or name == self._id]
            broken |= nulls(values, rows, f"{name} cannot be null")
        if name == self._id and (blank := pc.equal(array, "")).true_count:
            empty = pc.indices_nonzero(blank).to_pylist()
            broken |= {row: (Reason.OUT_OF_RANGE, "the record id is empty") for row in empty}
        return array, broken


def _came(messages: Sequence[bytes | None], timestamps: Sequence[int] | None) -> pa.Int64Array:
    """When each message came, milliseconds since 1970-01-01 UTC."""
    return pa.array(timestamps or [time.time_ns() // 1_000_000] * len(messages), pa.int64())


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the keys of an object alone say about it."""

    complete: bool = False
    actual: bool = False
    wrong: tuple[Reason, str, str] | None = None
