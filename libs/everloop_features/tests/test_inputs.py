"""Raw values become the same feeds from rows and from tables, and what does not fit is named."""

from __future__ import annotations

import json
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_features import (
    NULL_TIME,
    InputError,
    InputSpec,
    feeds_from_rows,
    feeds_from_table,
    inputs_of,
)

GOOD: dict[str, object] = {
    "at": "2013-07-01T16:30:00Z",
    "seen": None,
    "city": "Graz",
    "shop": "a",
    "price": 1.5,
    "count": 2,
    "member": True,
    "note": "the quick",
}


@pytest.fixture(scope="session")
def inputs(pipeline: Pipeline) -> tuple[InputSpec, ...]:
    return inputs_of(pipeline)


def test_inputs_are_the_used_fields_in_schema_order(inputs: tuple[InputSpec, ...]) -> None:
    assert [spec.name for spec in inputs] == list(GOOD)


def test_manifest_round_trip(inputs: tuple[InputSpec, ...]) -> None:
    text = json.dumps([spec.to_json() for spec in inputs])
    assert tuple(InputSpec.from_json(item) for item in json.loads(text)) == inputs


def test_a_row_becomes_one_column_per_input(inputs: tuple[InputSpec, ...]) -> None:
    feeds = feeds_from_rows([GOOD, {**GOOD, "shop": None, "price": None, "count": 3.0}], inputs)
    assert {name: feed.shape for name, feed in feeds.items()} == dict.fromkeys(GOOD, (2, 1))
    noon = (datetime(2013, 7, 1, 12, 30) - datetime(1970, 1, 1)).total_seconds()
    assert feeds["at"].ravel().tolist() == [noon, noon]
    assert feeds["at"].dtype == np.int64
    assert feeds["seen"].ravel().tolist() == [NULL_TIME] * 2
    assert feeds["shop"].ravel().tolist() == ["a", ""]
    assert feeds["count"].ravel().tolist() == [2.0, 3.0]
    assert feeds["price"].dtype == np.float32
    assert math.isnan(feeds["price"][1, 0])
    assert feeds["member"].ravel().tolist() == [1.0, 1.0]


def test_no_rows_give_empty_columns(inputs: tuple[InputSpec, ...]) -> None:
    assert {feed.shape for feed in feeds_from_rows([], inputs).values()} == {(0, 1)}


@pytest.mark.parametrize(
    ("text", "wall"),
    [
        ("2013-03-10T06:59:59Z", "2013-03-10T01:59:59"),
        ("2013-03-10T07:00:00Z", "2013-03-10T03:00:00"),
        ("2013-11-03T01:30:00-05:00", "2013-11-03T01:30:00"),
        ("2013-11-03t05:30:00.999z", "2013-11-03T01:30:00"),
        ("1969-12-31T12:00:00.5", "1969-12-31T12:00:00"),
    ],
)
def test_timestamps_are_read_on_the_wall_clock_of_the_field(
    text: str, wall: str, inputs: tuple[InputSpec, ...]
) -> None:
    seconds = feeds_from_rows([{**GOOD, "at": text}], inputs)["at"][0, 0]
    assert seconds == (datetime.fromisoformat(wall) - datetime(1970, 1, 1)).total_seconds()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"city": None}, "NOT_NULLABLE"),
        ({"city": 1}, "WRONG_TYPE"),
        ({"price": "1"}, "WRONG_TYPE"),
        ({"price": True}, "WRONG_TYPE"),
        ({"price": 10**400}, "OUT_OF_RANGE"),
        ({"count": 1.5}, "WRONG_TYPE"),
        ({"member": 1}, "WRONG_TYPE"),
        ({"at": "2013-01-01"}, "WRONG_TYPE"),
        ({"at": "yesterday, at noon"}, "WRONG_TYPE"),
        ({"at": 1357016400}, "WRONG_TYPE"),
    ],
)
def test_what_does_not_fit_is_named(
    change: dict[str, object], reason: str, inputs: tuple[InputSpec, ...]
) -> None:
    with pytest.raises(InputError) as caught:
        feeds_from_rows([GOOD, {**GOOD, **change}], inputs)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.row, error.field, error.reason) == (1, next(iter(change)), reason)
    assert f"row 1, field '{error.field}'" in str(error)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_a_number_that_is_none_is_no_number(count: int) -> None:
    rows: list[dict[str, Any]] = [{"a": 1.0, "b": 2.0}] * (count - 1)
    inputs = [
        InputSpec("a", FieldType.FLOAT),
        InputSpec("b", FieldType.FLOAT, nullable=True),
    ]
    feeds = feeds_from_rows([*rows, {"a": 1.0, "b": math.nan}], inputs)
    assert math.isnan(feeds["b"][-1, 0])
    with pytest.raises(InputError) as caught:
        feeds_from_rows([*rows, {"a": math.nan, "b": 2.0}], inputs)
    assert (caught.value.row, caught.value.reason) == (count - 1, "NOT_NULLABLE")


def test_a_missing_field_is_named(inputs: tuple[InputSpec, ...]) -> None:
    row = {name: value for name, value in GOOD.items() if name != "city"}
    with pytest.raises(InputError) as caught:
        feeds_from_rows([row], inputs)
    assert (caught.value.field, caught.value.reason) == ("city", "MISSING_FIELD")


# Arrow reads no summer time after 2037, the end of the tables that zone files spell out.
MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(2037, 1, 1), timezones=st.just(UTC))
ROWS = st.fixed_dictionaries(
    {
        "at": MOMENTS,
        "seen": st.none() | MOMENTS,
        "city": st.text(max_size=5),
        "shop": st.none() | st.text(max_size=5),
        "price": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "count": st.none() | st.integers(-(2**53), 2**53),
        "member": st.none() | st.booleans(),
        "note": st.none() | st.text(max_size=5),
    }
)


@given(rows=st.lists(ROWS, min_size=1, max_size=6))
def test_rows_and_tables_give_the_same_feeds(
    rows: list[dict[str, Any]], inputs: tuple[InputSpec, ...]
) -> None:
    types = {
        "at": pa.timestamp("us", tz="UTC"),
        "seen": pa.timestamp("us", tz="UTC"),
        "city": pa.string(),
        "shop": pa.string(),
        "price": pa.float64(),
        "count": pa.int64(),
        "member": pa.bool_(),
        "note": pa.string(),
    }
    table = pa.table(
        {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
    )
    records = [
        {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()} for row in rows
    ]
    from_table = feeds_from_table(table, inputs)
    from_rows = feeds_from_rows(records, inputs)
    for name in from_rows:
        assert from_table[name].dtype == from_rows[name].dtype
        if from_rows[name].dtype == object:
            assert from_table[name].tolist() == from_rows[name].tolist()
        else:
            np.testing.assert_array_equal(from_table[name], from_rows[name])


OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


def stamps(first: datetime, last: datetime) -> st.SearchStrategy[str]:
    return st.datetimes(first, last, timezones=OFFSETS).map(
        lambda moment: moment.replace(microsecond=0).isoformat()
    )


NEAR = stamps(datetime(1970, 1, 3), datetime(2037, 12, 29))
ANY = stamps(datetime(1900, 1, 2), datetime(2100, 1, 1))
# Where clocks change: New York's days, and those of an island where they change by half an hour.
CHANGES = [
    datetime(2013, 3, 10, 7, tzinfo=UTC),
    datetime(2013, 11, 3, 6, tzinfo=UTC),
    datetime(2013, 4, 6, 15, tzinfo=UTC),
    datetime(2013, 10, 5, 15, 30, tzinfo=UTC),
]
EDGES = st.builds(
    lambda change, seconds: (change + timedelta(seconds=seconds)).isoformat(),
    st.sampled_from(CHANGES),
    st.integers(-7200, 7200),
)
# Of the shape of one, but not always a day or an hour that there is.
SHAPED = st.from_regex(
    r"[0-9]{3}[0-9]-[012][0-9]-[0-3][0-9][Tt ][0-2][0-9]:[0-6][0-9]:[0-6][0-9](Z|z|[+-][0-3][0-9]:[0-9]{2})",
    fullmatch=True,
)


@given(common=st.lists(NEAR | EDGES, min_size=20, max_size=30), odd=st.none() | ANY | SHAPED)
@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Lord_Howe", "UTC"])
def test_many_timestamps_are_read_as_each_by_itself(
    zone: str, common: list[str], odd: str | None
) -> None:
    inputs = [InputSpec("at", FieldType.TIMESTAMP, timezone=zone)]
    texts = common if odd is None else [*common, odd]

    def told(rows: list[dict[str, Any]]) -> list[int] | str:
        try:
            return [int(value) for value in feeds_from_rows(rows, inputs)["at"].ravel()]
        except InputError as error:
            return f"{error.reason} {error.args[0].partition(', ')[2]}"

    each = [told([{"at": text}]) for text in texts]
    refusals = [found for found in each if isinstance(found, str)]
    expected = refusals[0] if refusals else [found[0] for found in each]
    assert told([{"at": text} for text in texts]) == expected


def test_a_table_without_an_input_is_refused(inputs: tuple[InputSpec, ...]) -> None:
    with pytest.raises(KeyError):
        feeds_from_table(pa.table({"at": pa.array([], pa.timestamp("us", tz="UTC"))}), inputs)
