"""From JSON messages to one Arrow batch of the pipeline's schema, and the reasons of those that are not in it.

Whole columns are checked at once; single values are looked at only in a column that holds a broken one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from operator import itemgetter
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import FieldSpec, FieldType, Pipeline
from everloop_ingest.domain import Reason, Rejection

__all__ = ["Validated", "Validator", "arrow_schema"]

_ARROW: dict[FieldType, pa.DataType] = {
    FieldType.STRING: pa.string(),
    FieldType.BOOL: pa.bool_(),
    FieldType.INT: pa.int64(),
    FieldType.FLOAT: pa.float64(),
    FieldType.TIMESTAMP: pa.timestamp("us", "UTC"),
}
_PYTHON: dict[FieldType, frozenset[type]] = {
    FieldType.STRING: frozenset({str}),
    FieldType.BOOL: frozenset({bool}),
    FieldType.INT: frozenset({int}),
    FieldType.FLOAT: frozenset({float, int}),
    FieldType.TIMESTAMP: frozenset({str}),
}
_NONE = type(None)
_INT64 = range(-(2**63), 2**63)
_FLOAT32 = (2.0 - 2.0**-23) * 2.0**127
"""The largest number that a model can take."""

# RFC 3339, and the same without an offset. A leap second is refused: no clock here has one.
_TIME = (
    r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])[T ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?"
    r"(Z|[+-]([01]\d|2[0-3]):[0-5]\d)?$"
)
_OFFSET = r"(Z|[+-]\d\d:\d\d)$"
_LONG_FRACTION = r"\.\d{7}"
# A day inside what Python, Parquet readers and every time zone can express.
_FIRST_TIME = pa.scalar("0001-01-02T00:00:00Z").cast(pa.timestamp("us", "UTC"))
_LAST_TIME = pa.scalar("9999-12-30T00:00:00Z").cast(pa.timestamp("us", "UTC"))

_Broken = dict[int, tuple[Reason, str]]
"""Rows of a column that break it: reason and message."""


def arrow_schema(pipeline: Pipeline) -> pa.Schema:
    """The schema of accepted rows: the fields in the pipeline's order, all nullable (late labels leave gaps)."""
    fields = pipeline.schema_.fields.items()
    return pa.schema([pa.field(name, _ARROW[spec.type]) for name, spec in fields])


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

    A message is one flat JSON object. A nullable field may be absent. A message with the record id, the target
    and at most the time is a late label (an actual), unless the schema has no other field.
    """

    def __init__(self, pipeline: Pipeline, max_bytes: int) -> None:
        """Takes the pipeline and the largest message in bytes.

        Raises:
            pyarrow.ArrowInvalid: the machine has no time zone data.
        """
        schema = pipeline.schema_
        self.schema = arrow_schema(pipeline)
        self._fields = schema.fields
        self._names = tuple(schema.fields)
        self._id, self._time, self._target = schema.id, schema.time, pipeline.target.field
        self._required = [name for name, spec in schema.fields.items() if not spec.nullable]
        self._max_bytes = max_bytes
        self._nulls = dict.fromkeys(self._names)
        self._values: Callable[[dict[str, Any]], tuple[Any, ...]] = itemgetter(*self._names)
        for spec in schema.fields.values():
            if spec.type is FieldType.TIMESTAMP:
                _timestamps(["2000-01-01T00:00:00"], spec)

    def __call__(self, messages: Sequence[bytes | None]) -> Validated:
        """Validates messages; every one of them is either a row or a rejection."""
        rejections: dict[int, Rejection] = {}
        records, positions, actuals = self._parse(messages, rejections)
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
        kept, is_actual = pa.array(positions, pa.int64()), pa.array(actuals, pa.bool_())
        if rejections:
            mask = pa.array([position not in rejections for position in positions], pa.bool_())
            rows, kept, is_actual = rows.filter(mask), kept.filter(mask), is_actual.filter(mask)
        return Validated(rows, kept, is_actual, [rejections[row] for row in sorted(rejections)])

    def _parse(
        self, messages: Sequence[bytes | None], rejections: dict[int, Rejection]
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
                record = orjson.loads(message)
            except orjson.JSONDecodeError as error:
                rejections[position] = Rejection(position, Reason.MALFORMED_JSON, "", str(error))
                continue
            if type(record) is not dict:
                text = f"a record is a JSON object, this is {_show(record)}"
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
            text = f"the schema has no field {_show(unknown[0])}"
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
    ) -> tuple[pa.Array, _Broken]:
        """One column as an array, null where broken, and the broken rows."""
        broken: _Broken = {}
        types = set(map(type, values))
        if not types <= _PYTHON[spec.type] | {_NONE}:
            broken |= _wrong_types(spec, values)
        if _NONE in types and late and name == self._target:
            broken |= _nulls(values, sorted(late), "a late label holds a label")
        if _NONE in types and not spec.nullable:
            rows = [row for row in range(len(values)) if row not in late or name == self._id]
            broken |= _nulls(values, rows, f"{name} cannot be null")
        array, unconvertible = _convert(spec, _without(values, broken))
        broken |= unconvertible
        broken |= _outside(spec, array)
        if name == self._id and pc.any(pc.equal(array, "")).as_py():
            empty = pc.indices_nonzero(pc.fill_null(pc.equal(array, ""), False)).to_pylist()
            broken |= {row: (Reason.OUT_OF_RANGE, "the record id is empty") for row in empty}
        return array, broken


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the keys of an object alone say about it."""

    complete: bool = False
    actual: bool = False
    wrong: tuple[Reason, str, str] | None = None


def _wrong_types(spec: FieldSpec, values: Sequence[Any]) -> _Broken:
    allowed = _PYTHON[spec.type]
    return {
        row: (Reason.WRONG_TYPE, f"{_show(value)} is not of type {spec.type}")
        for row, value in enumerate(values)
        if value is not None and type(value) not in allowed
    }


def _nulls(values: Sequence[Any], rows: Sequence[int], text: str) -> _Broken:
    return {row: (Reason.NOT_NULLABLE, text) for row in rows if values[row] is None}


def _without(values: Sequence[Any], broken: _Broken) -> Sequence[Any]:
    if not broken:
        return values
    return [None if row in broken else value for row, value in enumerate(values)]


def _convert(spec: FieldSpec, values: Sequence[Any]) -> tuple[pa.Array, _Broken]:
    """Converts values of the right Python type or None."""
    if spec.type is FieldType.TIMESTAMP:
        return _timestamps(values, spec)
    try:
        return pa.array(values, _ARROW[spec.type]), {}
    except (pa.ArrowInvalid, OverflowError):
        if spec.type is FieldType.FLOAT:
            # An integer that a float only rounds to: what every reader of JSON does.
            return pa.array([None if v is None else float(v) for v in values], pa.float64()), {}
    broken: _Broken = {
        row: (Reason.OUT_OF_RANGE, f"{value} does not fit 64 bits")
        for row, value in enumerate(values)
        if value is not None and value not in _INT64
    }
    return pa.array(_without(values, broken), _ARROW[spec.type]), broken


def _outside(spec: FieldSpec, array: pa.Array) -> _Broken:
    """Rows outside of the range or the categories."""
    if spec.categories is not None:
        known = pc.is_in(array, pa.array(spec.categories, pa.string()))
        wrong = pc.and_(pc.is_valid(array), pc.invert(known))
        reason, rule = Reason.UNKNOWN_CATEGORY, f"one of {', '.join(spec.categories)}"
    elif spec.type is FieldType.FLOAT or spec.min is not None or spec.max is not None:
        low, high = _bounds(spec)
        wrong = pc.fill_null(pc.or_(pc.less(array, low), pc.greater(array, high)), False)
        reason, rule = Reason.OUT_OF_RANGE, f"between {low} and {high}"
    else:
        return {}
    if not pc.any(wrong).as_py():
        return {}
    rows = pc.indices_nonzero(wrong).to_pylist()
    return {row: (reason, f"{_show(array[row].as_py())} is not {rule}") for row in rows}


def _bounds(spec: FieldSpec) -> tuple[float, float]:
    """Smallest and largest value; whole for integers, which a float comparison would round.

    Floats that a model could take only as infinite are outside of every range.
    """
    low = float("-inf") if spec.min is None else spec.min
    high = float("inf") if spec.max is None else spec.max
    if spec.type is FieldType.FLOAT:
        return max(low, -_FLOAT32), min(high, _FLOAT32)
    return (
        math.ceil(low) if low > _INT64[0] else _INT64[0],
        math.floor(high) if high < _INT64[-1] else _INT64[-1],
    )


def _timestamps(values: Sequence[str | None], spec: FieldSpec) -> tuple[pa.Array, _Broken]:
    """Times as UTC. Without an offset: the wall clock of the field's zone, the earlier one where it shows twice.

    A wall-clock time that never was (clocks went forward over it) is broken.
    """
    broken: _Broken = {}
    texts = pc.ascii_upper(pa.array(values, pa.string()))
    fine = pc.match_substring_regex(texts, _TIME)
    if not pc.all(fine).as_py():
        broken |= {
            row: (Reason.WRONG_TYPE, f"{_show(values[row])} is not an RFC 3339 time")
            for row in pc.indices_nonzero(pc.invert(fine)).to_pylist()
        }
        texts = pc.if_else(fine, texts, None)
    if pc.any(pc.match_substring_regex(texts, _LONG_FRACTION)).as_py():
        texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d+", r"\1")
    try:
        array, gaps = _in_utc(texts, spec.timezone)
    except pa.ArrowInvalid:  # a day that its month does not have
        for row, text in enumerate(texts.to_pylist()):
            if text is not None and not _is_date(text[:10]):
                broken[row] = (Reason.WRONG_TYPE, f"{_show(values[row])} is not an RFC 3339 time")
        array, gaps = _in_utc(
            pa.array(_without(texts.to_pylist(), broken), pa.string()), spec.timezone
        )
    for row in gaps:
        text = f"{_show(values[row])} does not exist in {spec.timezone}: clocks went forward"
        broken[row] = (Reason.OUT_OF_RANGE, text)
    outside = pc.fill_null(
        pc.or_(pc.less(array, _FIRST_TIME), pc.greater(array, _LAST_TIME)), False
    )
    for row in pc.indices_nonzero(outside).to_pylist():
        broken[row] = (
            Reason.OUT_OF_RANGE,
            f"{_show(values[row])} is not between 0001-01-02 and 9999-12-30 in UTC",
        )
    return array, broken


def _in_utc(texts: pa.Array, timezone: str) -> tuple[pa.Array, list[int]]:
    """Well-formed times as UTC, and the rows whose wall-clock time does not exist."""
    utc = pa.timestamp("us", "UTC")
    has_offset = pc.match_substring_regex(texts, _OFFSET)
    if pc.all(has_offset).as_py():
        return texts.cast(utc), []
    exact = pc.if_else(has_offset, texts, None).cast(utc)
    local = pc.if_else(has_offset, None, texts).cast(pa.timestamp("us"))
    before, after = (
        pc.assume_timezone(local, timezone, ambiguous="earliest", nonexistent=side).cast(utc)
        for side in ("earliest", "latest")
    )
    gaps = pc.indices_nonzero(pc.fill_null(pc.not_equal(before, after), False)).to_pylist()
    return pc.coalesce(exact, after), gaps


def _is_date(text: str) -> bool:
    year, month, day = map(int, text.split("-"))
    try:
        # Python has no year 0; it is a leap year like 4, and refused later.
        date(year or 4, month, day)
    except ValueError:
        return False
    return True


def _show(value: object) -> str:
    """A value for a message: as JSON, cut short."""
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."
