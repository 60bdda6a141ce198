"""One column of records: from JSON values to an Arrow array, and the rows that break its field's contract."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date
from functools import lru_cache
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import FieldSpec, FieldType
from everloop_ingest.domain import Reason

__all__ = ["ARROW", "Broken", "nulls", "read_column", "show", "sound"]

ARROW: dict[FieldType, pa.DataType] = {
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

Broken = dict[int, tuple[Reason, str]]
"""Rows of a column that break it: reason and message."""


def read_column(
    spec: FieldSpec, values: Sequence[Any], types: set[type]
) -> tuple[pa.Array, Broken]:
    """One column as an array, null where broken, and the broken rows; nulls are not judged here.

    Args:
        spec: what the field is.
        values: as JSON gives them.
        types: of the values.
    """
    broken: Broken = {}
    if not types <= _PYTHON[spec.type] | {_NONE}:
        broken |= _wrong_types(spec, values)
    array, unconvertible = _convert(spec, _without(values, broken))
    broken |= unconvertible
    for wrong, reason, rule in _outside(spec, array):
        if wrong.true_count:
            for row in pc.indices_nonzero(pc.fill_null(wrong, False)).to_pylist():
                broken.setdefault(row, (reason, f"{show(array[row].as_py())} is not {rule}"))
    return array, broken


def sound(spec: FieldSpec, array: pa.Array) -> pa.Array | None:
    """A column as `read_column` gives it; None where a row breaks it.

    Args:
        spec: what the field is.
        array: its values, of the type in `ARROW`; timestamps as texts.
    """
    if not spec.nullable and array.null_count:
        return None
    if spec.type is FieldType.TIMESTAMP:
        array, broken = _timestamps(array, spec)
        if broken:
            return None
    return None if any(wrong.true_count for wrong, _, _ in _outside(spec, array)) else array


def nulls(values: Sequence[Any], rows: Sequence[int], text: str) -> Broken:
    """Those of the rows that are null, as broken."""
    return {row: (Reason.NOT_NULLABLE, text) for row in rows if values[row] is None}


def show(value: object) -> str:
    """A value for a message: as JSON, cut short."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = orjson.dumps(value, default=str).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


def _wrong_types(spec: FieldSpec, values: Sequence[Any]) -> Broken:
    allowed = _PYTHON[spec.type]
    return {
        row: (Reason.WRONG_TYPE, f"{show(value)} is not of type {spec.type}")
        for row, value in enumerate(values)
        if value is not None and type(value) not in allowed
    }


def _without(values: Sequence[Any], broken: Broken) -> Sequence[Any]:
    if not broken:
        return values
    return [None if row in broken else value for row, value in enumerate(values)]


def _convert(spec: FieldSpec, values: Sequence[Any]) -> tuple[pa.Array, Broken]:
    """Converts values of the right Python type or None."""
    if spec.type is FieldType.TIMESTAMP:
        return _timestamps(pa.array(values, pa.string()), spec)
    try:
        return pa.array(values, ARROW[spec.type]), {}
    except (pa.ArrowInvalid, OverflowError):
        if spec.type is FieldType.FLOAT:
            # An integer that a float only rounds to: what every reader of JSON does.
            return pa.array([None if v is None else float(v) for v in values], pa.float64()), {}
    broken: Broken = {
        row: (Reason.OUT_OF_RANGE, f"{value} does not fit 64 bits")
        for row, value in enumerate(values)
        if value is not None and value not in _INT64
    }
    return pa.array(_without(values, broken), ARROW[spec.type]), broken


def _outside(spec: FieldSpec, array: pa.Array) -> Iterator[tuple[pa.Array, Reason, str]]:
    """For each rule of the field: where it is broken (null where there is no value), the reason, what is wanted."""
    if spec.type is FieldType.STRING:
        wrong = pc.match_substring(array, "\0")
        yield (
            wrong,
            Reason.PATTERN_MISMATCH,
            "free of NUL characters, which PostgreSQL does not take",
        )
    if spec.categories is not None:
        known = pc.is_in(array, pa.array(spec.categories, pa.string()))
        wrong = pc.and_(pc.is_valid(array), pc.invert(known))
        yield wrong, Reason.UNKNOWN_CATEGORY, f"one of {', '.join(spec.categories)}"
    if spec.max_length is not None:
        long = pc.greater(pc.utf8_length(array), spec.max_length)
        yield long, Reason.TOO_LONG, f"of at most {spec.max_length} characters"
    if spec.pattern is not None:
        wrong = pc.invert(pc.match_substring_regex(array, spec.pattern))
        yield wrong, Reason.PATTERN_MISMATCH, f"matched by {spec.pattern}"
    if spec.type is FieldType.FLOAT or spec.min is not None or spec.max is not None:
        low, high = _bounds(spec)
        within = pc.and_(pc.greater_equal(array, _scalar(low)), pc.less_equal(array, _scalar(high)))
        # NaN is within nothing: JSON has none, Protobuf has.
        yield pc.invert(within), Reason.OUT_OF_RANGE, f"between {low} and {high}"


@lru_cache(typed=True)
def _scalar(value: float) -> pa.Scalar:
    """A bound as Arrow wants it: making one takes longer than to compare a small batch with it."""
    return pa.scalar(value)


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


def _timestamps(values: pa.StringArray, spec: FieldSpec) -> tuple[pa.Array, Broken]:
    """Times as UTC. Without an offset: the wall clock of the field's zone, the earlier one where it shows twice.

    A wall-clock time that never was (clocks went forward over it) is broken.
    """
    broken: Broken = {}
    texts = pc.ascii_upper(values)
    fine = pc.match_substring_regex(texts, _TIME)
    if not pc.all(fine).as_py():
        broken |= {
            row: (Reason.WRONG_TYPE, f"{show(values[row].as_py())} is not an RFC 3339 time")
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
                broken[row] = (
                    Reason.WRONG_TYPE,
                    f"{show(values[row].as_py())} is not an RFC 3339 time",
                )
        array, gaps = _in_utc(
            pa.array(_without(texts.to_pylist(), broken), pa.string()), spec.timezone
        )
    for row in gaps:
        text = f"{show(values[row].as_py())} does not exist in {spec.timezone}: clocks went forward"
        broken[row] = (Reason.OUT_OF_RANGE, text)
    outside = pc.fill_null(
        pc.or_(pc.less(array, _FIRST_TIME), pc.greater(array, _LAST_TIME)), False
    )
    for row in pc.indices_nonzero(outside).to_pylist():
        broken[row] = (
            Reason.OUT_OF_RANGE,
            f"{show(values[row].as_py())} is not between 0001-01-02 and 9999-12-30 in UTC",
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
