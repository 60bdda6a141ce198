"""From raw values to what the model takes: one array `[rows, 1]` per input field.

Text is `object` (`""` for null), numbers and booleans are float32 (NaN for null), timestamps are int64 seconds of
local wall-clock time since 1970-01-01 in the field's time zone (`NULL_TIME` for null).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from math import isnan, nan
from operator import itemgetter
from typing import Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from everloop_contracts.pipeline import FieldType, Pipeline

__all__ = [
    "NULL_TIME",
    "Block",
    "Feeds",
    "InputError",
    "InputSpec",
    "Layout",
    "feeds_from_rows",
    "feeds_from_table",
    "inputs_of",
]

Feeds = dict[str, npt.NDArray[Any]]

NULL_TIME: Final = int(np.iinfo(np.int64).min)
"""What stands for a null timestamp."""

_ABSENT: Final = object()
_NUMBERS: Final = frozenset({float, int})
_STRINGS: Final = frozenset({str})
_INTEGERS: Final = {int}
_NONE: Final = {type(None)}
_MANY: Final = 16
"""Timestamps from which on Arrow is quicker than one after the other: 20 µs and 0.1 for each, not 1 for each."""
_LENGTHS: Final = frozenset({len("2013-01-01T06:27:00Z"), len("2013-01-01T06:27:00-05:00")})
_END_OF_TABLES: Final = int(datetime(2038, 1, 1, tzinfo=UTC).timestamp())
"""From there on zone files hold a rule, which Arrow does not read, and no changes."""
_EPOCH_DAY: Final = datetime(1970, 1, 1).toordinal()
_KIND_NAMES: Final = {
    FieldType.STRING: "a string",
    FieldType.BOOL: "true or false",
    FieldType.INT: "a whole number",
    FieldType.FLOAT: "a number",
    FieldType.TIMESTAMP: "an RFC 3339 timestamp as a string",
}


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One raw input of a model.

    Attributes:
        name: field of the record.
        type: its type in the schema.
        nullable: whether it may be null or absent.
        timezone: zone whose wall clock a timestamp is read on.
    """

    name: str
    type: FieldType
    nullable: bool = False
    timezone: str = "UTC"

    def to_json(self) -> dict[str, object]:
        """As the model's manifest holds it."""
        return asdict(self) | {"type": self.type.value}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> InputSpec:
        """Reads what `to_json` wrote."""
        return cls(value["name"], FieldType(value["type"]), value["nullable"], value["timezone"])


def inputs_of(pipeline: Pipeline) -> tuple[InputSpec, ...]:
    """The raw inputs of a pipeline's model, in the order of the schema."""
    return tuple(
        InputSpec(name, field.type, field.nullable, field.timezone)
        for name, field in pipeline.inputs.items()
    )


class InputError(ValueError):
    """A value that the model cannot take.

    Attributes:
        row: its position among the rows, from 0.
        field: the input.
        reason: `MISSING_FIELD`, `NOT_NULLABLE`, `WRONG_TYPE` or `OUT_OF_RANGE`.
    """

    def __init__(self, row: int, field: str, reason: str, message: str) -> None:
        """Takes the attributes and an explanation for a person."""
        super().__init__(f"row {row}, field '{field}': {message}")
        self.row = row
        self.field = field
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Survives pickling."""
        return _rebuild, (self.row, self.field, self.reason, str(self))


def _rebuild(row: int, field: str, reason: str, text: str) -> InputError:
    error = InputError(row, field, reason, "")
    error.args = (text,)
    return error


def feeds_from_table(table: pa.Table, inputs: Sequence[InputSpec]) -> Feeds:
    """Converts whole columns; timestamps of the table are UTC.

    Raises:
        KeyError: the table lacks an input.
    """
    return {spec.name: _column(table[spec.name], spec).reshape(-1, 1) for spec in inputs}


def _column(values: pa.ChunkedArray, spec: InputSpec) -> npt.NDArray[Any]:
    if spec.type is FieldType.STRING:
        texts = pc.fill_null(values.cast(pa.string()), "").to_numpy()
        return np.asarray(texts, dtype=object)
    if spec.type is FieldType.TIMESTAMP:
        # Without a zone of its own a column is UTC already; with one the cast keeps the instant.
        utc = values.cast(pa.timestamp("us", tz="UTC"))
        wall = pc.local_timestamp(utc.cast(pa.timestamp("us", tz=spec.timezone)))
        # Floor, as the serving side does; a cast to seconds would refuse fractions.
        micros = pc.fill_null(wall.cast(pa.int64()), NULL_TIME).to_numpy()
        return np.where(micros == NULL_TIME, NULL_TIME, micros // 1_000_000)
    if spec.type is FieldType.BOOL:
        values = values.cast(pa.int8())
    doubles = values.cast(pa.float64(), safe=False)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which features treat as missing
        return np.asarray(pc.fill_null(doubles, float("nan")), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Block:
    """Values of some rows: one array `[inputs, rows]` per kind of value, the inputs of a kind in the model's order.

    For a single row three arrays cost less than one per input, and joining blocks costs three steps.

    Attributes:
        texts: of string inputs, `object`.
        numbers: of number and boolean inputs, float32.
        times: of timestamp inputs, int64.
    """

    texts: npt.NDArray[Any]
    numbers: npt.NDArray[Any]
    times: npt.NDArray[Any]

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return int(self.numbers.shape[1])

    @staticmethod
    def joined(blocks: Sequence[Block]) -> Block:
        """All rows of several blocks of one layout, in order."""
        return Block(
            np.concatenate([block.texts for block in blocks], axis=1),
            np.concatenate([block.numbers for block in blocks], axis=1),
            np.concatenate([block.times for block in blocks], axis=1),
        )

    def take(self, rows: npt.NDArray[np.intp]) -> Block:
        """The rows at some positions."""
        return Block(self.texts[:, rows], self.numbers[:, rows], self.times[:, rows])


class Layout:
    """Where the inputs of a model are in its blocks; made once per model.

    Attributes:
        inputs: the inputs, in the model's order.
        order: names of numbers, of texts and of times as a block has them; numbers that may not be null come first.
    """

    def __init__(self, inputs: Sequence[InputSpec]) -> None:
        """Takes the inputs."""
        self.inputs = tuple(inputs)
        floats, rest, texts, times = (
            [spec for spec in self.inputs if spec.type in types]
            for types in (
                (FieldType.FLOAT,),
                (FieldType.INT, FieldType.BOOL),
                (FieldType.STRING,),
                (FieldType.TIMESTAMP,),
            )
        )
        # Those that may not be null come first: one look tells whether one of them is.
        floats.sort(key=lambda spec: spec.nullable)
        texts.sort(key=lambda spec: spec.nullable)
        self._floats, self._texts = (
            ([spec.name for spec in specs], sum(not spec.nullable for spec in specs))
            for specs in (floats, texts)
        )
        self._rest = rest
        self._times = [(spec, _zone(spec.timezone)) for spec in times]
        kinds = {"numbers": floats + rest, "texts": texts, "times": times}
        self.order = [[spec.name for spec in specs] for specs in kinds.values()]
        self._named = [*self.order[0], *self.order[1]]
        self._picked = itemgetter(*(self._named or ("",)))
        self._widths = [len(specs) for specs in kinds.values()]
        self._places = {
            spec.name: (kind, place)
            for kind, specs in kinds.items()
            for place, spec in enumerate(specs)
        }
        order = {name: place for place, name in enumerate(self._places)}
        self._views = [(spec.name, order[spec.name]) for spec in self.inputs]

    def empty(self, rows: int) -> Block:
        """A block to be filled; numbers and times hold anything, texts None."""
        numbers, texts, times = self._widths
        return Block(
            np.empty((texts, rows), dtype=object),
            np.empty((numbers, rows), dtype=np.float32),
            np.empty((times, rows), dtype=np.int64),
        )

    def column(self, block: Block, name: str) -> npt.NDArray[Any]:
        """The values of one input, `[rows]`, as a view."""
        kind, place = self._places[name]
        column: npt.NDArray[Any] = getattr(block, kind)[place]
        return column

    def feeds(self, block: Block) -> Feeds:
        """One view `[rows, 1]` per input."""
        count = block.rows
        numbers, texts, times = self._widths
        views = [
            *block.numbers.reshape(numbers, count, 1),
            *block.texts.reshape(texts, count, 1),
            *block.times.reshape(times, count, 1),
        ]
        return {name: views[place] for name, place in self._views}

    def mixed(self, row: Block, others: Block, taken: npt.NDArray[np.bool_]) -> Block:
        """Rows with the values of a single row where `taken` `[rows, inputs]` says so, and their own elsewhere."""
        columns = {name: place for place, name in enumerate(self._places)}
        by_column = np.empty((len(columns), len(taken)), dtype=bool)
        for number, spec in enumerate(self.inputs):
            by_column[columns[spec.name]] = taken[:, number]
        numbers, texts, _ = self._widths
        return Block(
            numbers=np.where(by_column[:numbers], row.numbers, others.numbers),
            texts=np.where(by_column[numbers : numbers + texts], row.texts, others.texts),
            times=np.where(by_column[numbers + texts :], row.times, others.times),
        )

    def from_rows(self, rows: Sequence[Mapping[str, object]]) -> Block:
        """Converts JSON objects; fields that are no input are ignored.

        A nullable input may be null or absent. A timestamp is RFC 3339; without an offset it is the wall clock of the
        field's time zone.

        Raises:
            InputError: the first value, by field and then by row, that does not fit.
        """
        try:
            return self._converted(rows)
        except (_Doubtful, TypeError, OverflowError):
            return self._converted_one_by_one(rows)

    def from_plain(self, columns: Mapping[str, Sequence[Any]]) -> Block | None:
        """Converts columns of one length whose timestamps may be whole seconds of wall-clock time as well.

        Args:
            columns: name to values, of one JSON type each (numbers are one) or null.

        Returns:
            None where a value is not of the very type that the model takes, or is NaN, missing or unknown: it needs a
            closer look than this one.
        """
        if not columns or not columns.keys() <= self._places.keys():
            return None
        rows = len(next(iter(columns.values())))
        nulls = (None,) * rows
        names, required = self._floats
        given = [columns.get(name, nulls) for name in names]
        floats = list(chain.from_iterable(given))
        try:
            # Which takes truth for a number; a column holds values of one type, or nulls.
            packed = array("f", floats)
            doubtful = not _NUMBERS.issuperset([type(values[0]) for values in given])
        except (TypeError, OverflowError):
            doubtful = True
        if doubtful:
            kinds = set(map(type, floats)) - _NUMBERS
            if kinds != _NONE or None in floats[: required * rows]:
                return None
            packed = array("f", [nan if value is None else value for value in floats])
        if isnan(sum(floats[: required * rows])):
            return None
        for spec in self._rest:
            values = columns.get(spec.name, nulls)
            wanted = bool if spec.type is FieldType.BOOL else int
            if kinds := set(map(type, values)) - {wanted}:
                if kinds != _NONE or not spec.nullable:
                    return None
                values = [nan if value is None else value for value in values]
            packed.extend(values)
        names, required = self._texts
        texts = list(chain.from_iterable([columns.get(name, nulls) for name in names]))
        if kinds := set(map(type, texts)) - _STRINGS:
            if kinds != _NONE or None in texts[: required * rows]:
                return None
            texts = ["" if value is None else value for value in texts]
        try:
            times: list[int] = []
            for spec, zone in self._times:
                times.extend(_moments(columns.get(spec.name, nulls), spec, zone))
            return self._filled(rows, packed, texts, times)
        except (InputError, OverflowError):
            return None

    def _converted(self, rows: Sequence[Mapping[str, object]]) -> Block:
        """Checks the exact types that a JSON parser gives for all values of a kind at once.

        Raises:
            _Doubtful, TypeError, OverflowError: some value needs a closer look.
        """
        columns = self._columns(rows)
        names, required = self._floats
        floats: list[Any] = list(chain.from_iterable(columns[: len(names)]))
        if kinds := set(map(type, floats)) - _NUMBERS:
            if kinds != _NONE or None in floats[: required * len(rows)]:
                raise _Doubtful
            floats = [nan if value is None else value for value in floats]
        if isnan(sum(floats[: required * len(rows)])):
            raise _Doubtful
        for spec in self._rest:
            floats.extend([_number(rows, row, spec) for row in rows])
        begin = len(names) + len(self._rest)
        names, required = self._texts
        texts: list[Any] = list(chain.from_iterable(columns[begin : begin + len(names)]))
        if kinds := set(map(type, texts)) - _STRINGS:
            if kinds != _NONE or None in texts[: required * len(rows)]:
                raise _Doubtful
            texts = ["" if value is None else value for value in texts]
        times: list[int] = []
        for spec, zone in self._times:
            times += _times(rows, spec, zone)
        return self._filled(len(rows), floats, texts, times)

    def _columns(self, rows: Sequence[Mapping[str, object]]) -> Sequence[Sequence[object]]:
        """Numbers, then texts; None where a field is absent."""
        if len(self._named) > 1:
            with suppress(KeyError):
                return list(zip(*map(self._picked, rows), strict=True))
        return [[row.get(name) for row in rows] for name in self._named]

    def _converted_one_by_one(self, rows: Sequence[Mapping[str, object]]) -> Block:
        values: dict[str, Sequence[Any]] = {}
        zones = {spec.name: zone for spec, zone in self._times}
        for spec in self.inputs:
            if spec.type is FieldType.STRING:
                values[spec.name] = [_text(rows, row, spec) for row in rows]
            elif spec.type is FieldType.TIMESTAMP:
                values[spec.name] = _times(rows, spec, zones[spec.name])
            else:
                values[spec.name] = [_number(rows, row, spec) for row in rows]
        ordered: dict[str, list[Any]] = {"numbers": [], "texts": [], "times": []}
        for name, (kind, _) in self._places.items():
            ordered[kind].extend(values[name])
        return self._filled(len(rows), ordered["numbers"], ordered["texts"], ordered["times"])

    def _filled(
        self, rows: int, floats: Sequence[float], texts: Sequence[str], times: Sequence[int]
    ) -> Block:
        width = self._widths
        text_block = np.empty(len(texts), dtype=object)
        text_block[:] = texts
        return Block(
            text_block.reshape(width[1], rows),
            # Beyond float32 is infinite, which features treat as missing; NumPy would warn.
            np.frombuffer(array("f", floats), dtype=np.float32).reshape(width[0], rows),
            np.array(times, dtype=np.int64).reshape(width[2], rows),
        )


class _Doubtful(Exception):
    """Some value is not what a well-formed row holds."""


def feeds_from_rows(rows: Sequence[Mapping[str, object]], inputs: Sequence[InputSpec]) -> Feeds:
    """Converts JSON objects as `Layout.from_rows` does.

    Raises:
        InputError: the first value, by field and then by row, that does not fit.
    """
    layout = Layout(inputs)
    return layout.feeds(layout.from_rows(rows))


def _text(rows: Sequence[Mapping[str, object]], row: Mapping[str, object], spec: InputSpec) -> str:
    value = row.get(spec.name, _ABSENT)
    if (value is None or value is _ABSENT) and spec.nullable:
        return ""
    if isinstance(value, str):
        return str(value)
    raise _refusal(rows, row, spec, value)


def _number(
    rows: Sequence[Mapping[str, object]], row: Mapping[str, object], spec: InputSpec
) -> float:
    value = row.get(spec.name, _ABSENT)
    if (value is None or value is _ABSENT) and spec.nullable:
        return float("nan")
    if isinstance(value, bool):
        if spec.type is FieldType.BOOL:
            return float(value)
    elif isinstance(value, int) and spec.type is not FieldType.BOOL:
        try:
            return float(value)
        except OverflowError as error:
            raise _error(rows, row, spec, "OUT_OF_RANGE", "the number is too large") from error
    elif isinstance(value, float) and (
        spec.type is FieldType.FLOAT or (spec.type is FieldType.INT and value.is_integer())
    ):
        if isnan(value) and not spec.nullable:
            raise _refusal(rows, row, spec, None)
        return value
    raise _refusal(rows, row, spec, value)


def _moments(values: Sequence[Any], spec: InputSpec, zone: ZoneInfo) -> Sequence[int]:
    """A column of timestamps; whole numbers are seconds already.

    Raises:
        InputError: a value is neither.
    """
    if set(map(type, values)) == _INTEGERS:
        return values
    rows = [{spec.name: value} for value in values]
    if _INTEGERS.isdisjoint(map(type, values)):
        return _times(rows, spec, zone)
    return [
        value if type(value) is int else _time(rows, row, spec, zone)
        for value, row in zip(values, rows, strict=True)
    ]


def _times(rows: Sequence[Mapping[str, object]], spec: InputSpec, zone: ZoneInfo) -> Sequence[int]:
    """The timestamps of some rows.

    Raises:
        InputError: the first that is none.
    """
    if len(rows) >= _MANY and _arrow_knows(zone):
        with suppress(KeyError, TypeError, pa.ArrowInvalid):
            if seconds := _times_by_arrow([row[spec.name] for row in rows], zone):
                return seconds
    return [_time(rows, row, spec, zone) for row in rows]


def _times_by_arrow(texts: Sequence[Any], zone: ZoneInfo) -> list[int] | None:
    """Timestamps of the common form; None where Arrow and `_time` may differ.

    Raises:
        TypeError, pyarrow.ArrowInvalid: one is no text, or none of whole seconds that says its offset.
    """
    if not _LENGTHS.issuperset(map(len, texts)):
        return None
    wall = _walls(texts, zone)
    return wall.tolist() if wall.min() >= 0 and wall.max() < _END_OF_TABLES else None


def _walls(texts: Sequence[str], zone: ZoneInfo) -> npt.NDArray[np.int64]:
    instants = pa.array(texts, pa.string()).cast(pa.timestamp("s", zone.key))
    return np.asarray(pc.local_timestamp(instants).to_numpy().view(np.int64))


@lru_cache(maxsize=64)
def _arrow_knows(zone: ZoneInfo) -> bool:
    """Whether Arrow reads a zone as Python does: it needs zone files of the system, with all changes spelled out."""
    months = [datetime(2037, month, 1, tzinfo=UTC) for month in range(1, 13)]
    walls = [moment.astimezone(zone).replace(tzinfo=UTC).timestamp() for moment in months]
    with suppress(pa.ArrowInvalid):
        return bool(np.array_equal(_walls([each.isoformat() for each in months], zone), walls))
    return False


def _time(
    rows: Sequence[Mapping[str, object]],
    row: Mapping[str, object],
    spec: InputSpec,
    zone: ZoneInfo,
) -> int:
    value = row.get(spec.name, _ABSENT)
    if (value is None or value is _ABSENT) and spec.nullable:
        return NULL_TIME
    # The parser takes dates and compact forms too; RFC 3339 has the separator at this place.
    if isinstance(value, str) and value[10:11] in ("T", "t", " "):
        try:
            moment = datetime.fromisoformat(value.upper())
            wall = moment if moment.tzinfo is None else moment.astimezone(zone)
        except (ValueError, OverflowError) as error:
            raise _refusal(rows, row, spec, value) from error
        days = wall.toordinal() - _EPOCH_DAY
        return ((days * 24 + wall.hour) * 60 + wall.minute) * 60 + wall.second
    raise _refusal(rows, row, spec, value)


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def _refusal(
    rows: Sequence[Mapping[str, object]],
    row: Mapping[str, object],
    spec: InputSpec,
    value: object,
) -> InputError:
    if value is _ABSENT:
        return _error(rows, row, spec, "MISSING_FIELD", "the field is missing")
    if value is None:
        return _error(rows, row, spec, "NOT_NULLABLE", "the field may not be null")
    wanted = _KIND_NAMES[spec.type]
    return _error(rows, row, spec, "WRONG_TYPE", f"must be {wanted}, not {value!r:.80}")


def _error(
    rows: Sequence[Mapping[str, object]],
    row: Mapping[str, object],
    spec: InputSpec,
    reason: str,
    message: str,
) -> InputError:
    position = next(index for index, item in enumerate(rows) if item is row)
    return InputError(position, spec.name, reason, message)
