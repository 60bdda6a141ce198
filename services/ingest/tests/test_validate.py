"""What is accepted, what is refused, and that order and values survive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Reason
from everloop_ingest.json_lines import JsonLines
from everloop_ingest.validate import Validated, Validator

LIMIT = 4096
SPEC: dict[str, Any] = {
    "pipeline": "parcels",
    "schema": {
        "id": "parcel",
        "time": "sent",
        "fields": {
            "parcel": {"type": "string"},
            "sent": {"type": "timestamp", "timezone": "America/New_York"},
            "weight": {"type": "float", "min": 0, "max": 50},
            "pieces": {"type": "int", "nullable": True, "min": 1},
            "zone": {"type": "string", "categories": ["A", "B"]},
            "fragile": {"type": "bool"},
            "note": {"type": "string", "nullable": True},
            "seal": {"type": "int", "nullable": True},
            "length": {"type": "float", "nullable": True, "min": -1e300},
            "lost": {"type": "bool", "nullable": True},
        },
    },
    "target": {"field": "lost", "task": "binary"},
    "features": {"weight": {"kind": "number", "of": "weight"}},
    "training": {"families": ["logistic_regression"]},
}
PIPELINE = Pipeline.model_validate(SPEC)
VALIDATOR = Validator(PIPELINE, LIMIT)
GOOD: dict[str, Any] = {
    "parcel": "p-1",
    "sent": "2026-03-01T12:00:00Z",
    "weight": 1.5,
    "pieces": 2,
    "zone": "A",
    "fragile": False,
    "note": None,
    "seal": 9,
    "length": 3e38,
    "lost": None,
}


def times() -> st.SearchStrategy[datetime]:
    return st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(
        lambda t: t.replace(tzinfo=UTC)
    )


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
records = st.fixed_dictionaries(
    {
        "parcel": text.filter(bool),
        "sent": times().map(lambda time: time.isoformat()),
        "weight": st.one_of(st.floats(0, 50), st.integers(0, 50)),
        "zone": st.sampled_from(["A", "B"]),
        "fragile": st.booleans(),
    },
    optional={
        "pieces": st.one_of(st.none(), st.integers(1, 2**62)),
        "note": st.one_of(st.none(), text),
        "seal": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        "lost": st.one_of(st.none(), st.booleans()),
    },
)
actuals = st.fixed_dictionaries(
    {"parcel": text.filter(bool), "lost": st.booleans()},
    optional={"sent": st.one_of(st.none(), times().map(lambda time: time.isoformat()))},
)
BREAKS: list[tuple[dict[str, Any], Reason, str]] = [
    ({"parcel": 7}, Reason.WRONG_TYPE, "parcel"),
    ({"parcel": None}, Reason.NOT_NULLABLE, "parcel"),
    ({"parcel": ""}, Reason.OUT_OF_RANGE, "parcel"),
    ({"sent": "yesterday"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": 1767225600}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-30T00:00:00Z"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-01"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-01T00:00:00Z\n"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-01T24:00:00Z"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-01T23:59:60Z"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "2026-02-01T00:00:00+0100"}, Reason.WRONG_TYPE, "sent"),
    ({"sent": "0000-02-01T00:00:00Z"}, Reason.OUT_OF_RANGE, "sent"),
    ({"sent": "9999-12-31T00:00:00Z"}, Reason.OUT_OF_RANGE, "sent"),
    ({"sent": "2026-03-08T02:30:00"}, Reason.OUT_OF_RANGE, "sent"),
    ({"sent": None}, Reason.NOT_NULLABLE, "sent"),
    ({"weight": "12"}, Reason.WRONG_TYPE, "weight"),
    ({"weight": True}, Reason.WRONG_TYPE, "weight"),
    ({"weight": -0.001}, Reason.OUT_OF_RANGE, "weight"),
    ({"weight": 51}, Reason.OUT_OF_RANGE, "weight"),
    ({"weight": [1]}, Reason.WRONG_TYPE, "weight"),
    ({"length": 1e300}, Reason.OUT_OF_RANGE, "length"),
    ({"length": 1e39}, Reason.OUT_OF_RANGE, "length"),
    ({"length": -1e39}, Reason.OUT_OF_RANGE, "length"),
    ({"pieces": 1.0}, Reason.WRONG_TYPE, "pieces"),
    ({"pieces": True}, Reason.WRONG_TYPE, "pieces"),
    ({"pieces": 0}, Reason.OUT_OF_RANGE, "pieces"),
    ({"seal": 2**63}, Reason.OUT_OF_RANGE, "seal"),
    ({"zone": "C"}, Reason.UNKNOWN_CATEGORY, "zone"),
    ({"zone": 1}, Reason.WRONG_TYPE, "zone"),
    ({"fragile": 0}, Reason.WRONG_TYPE, "fragile"),
    ({"fragile": None}, Reason.NOT_NULLABLE, "fragile"),
    ({"note": {"a": 1}}, Reason.WRONG_TYPE, "note"),
    ({"lost": "true"}, Reason.WRONG_TYPE, "lost"),
    ({"colour": "red"}, Reason.UNKNOWN_FIELD, "colour"),
    *(
        ({name: ...}, Reason.MISSING_FIELD, name)
        for name in ("parcel", "sent", "weight", "zone", "fragile")
    ),
]
RAW_BREAKS: list[tuple[bytes | None, Reason]] = [
    (b"", Reason.MALFORMED_JSON),
    (None, Reason.MALFORMED_JSON),
    (b"{", Reason.MALFORMED_JSON),
    (b"\xff\xfe", Reason.MALFORMED_JSON),
    (b'{"weight": NaN}', Reason.MALFORMED_JSON),
    (b'{"weight": Infinity}', Reason.MALFORMED_JSON),
    (b'{"weight": 1e999}', Reason.MALFORMED_JSON),
    (b'{"note": "\\ud800"}', Reason.MALFORMED_JSON),
    (b'{"a": 1} {"a": 2}', Reason.MALFORMED_JSON),
    (b"[" * 3000, Reason.MALFORMED_JSON),
    (b"[]", Reason.NOT_AN_OBJECT),
    (b"null", Reason.NOT_AN_OBJECT),
    (b"12", Reason.NOT_AN_OBJECT),
    (b" " * (LIMIT + 1), Reason.RECORD_TOO_LARGE),
]


def broken(change: dict[str, Any]) -> bytes:
    return orjson.dumps({k: v for k, v in (GOOD | change).items() if v is not ...})


def expected(record: dict[str, Any]) -> dict[str, Any]:
    row = dict.fromkeys(GOOD) | record
    if row["sent"] is not None:
        row["sent"] = datetime.fromisoformat(row["sent"])
    return row


@given(st.lists(st.one_of(records, actuals), max_size=20))
def test_valid_records_and_labels_survive_in_order(values: list[dict[str, Any]]) -> None:
    out = VALIDATOR([orjson.dumps(value) for value in values])
    assert out.rejections == []
    assert out.rows.to_pylist() == [expected(value) for value in values]
    assert out.positions.to_pylist() == list(range(len(values)))
    assert out.actuals.to_pylist() == [len(value) <= 3 for value in values]


@pytest.mark.parametrize(("change", "reason", "field"), BREAKS, ids=lambda v: str(v)[:40])
def test_a_broken_field_is_named(change: dict[str, Any], reason: Reason, field: str) -> None:
    [rejection] = VALIDATOR([broken(change)]).rejections
    assert (rejection.reason, rejection.field) == (reason, field)
    assert rejection.message


@pytest.mark.parametrize(("raw", "reason"), RAW_BREAKS, ids=lambda v: str(v)[:40])
def test_what_is_no_object_is_refused_as_a_whole(raw: bytes | None, reason: Reason) -> None:
    [rejection] = VALIDATOR([raw]).rejections
    assert (rejection.reason, rejection.field) == (reason, "")


def test_a_day_at_the_end_of_the_calendar_is_told_what_is_allowed() -> None:
    [rejection] = VALIDATOR([broken({"sent": "9999-12-31T23:59:59Z"})]).rejections
    assert rejection.message == (
        '"9999-12-31T23:59:59Z" is not between 0001-01-02 and 9999-12-30 in UTC'
    )


def test_a_year_too_early_is_named_alike_beside_a_day_that_never_was() -> None:
    out = VALIDATOR([broken({"sent": f"{day}T00:00:00Z"}) for day in ("2026-02-30", "0000-02-29")])
    assert [r.reason for r in out.rejections] == [Reason.WRONG_TYPE, Reason.OUT_OF_RANGE]


@given(
    st.lists(st.one_of(records, st.sampled_from(BREAKS), st.sampled_from(RAW_BREAKS)), max_size=25)
)
def test_broken_messages_never_touch_their_neighbours(items: list[Any]) -> None:
    messages: list[bytes | None] = []
    for item in items:
        if isinstance(item, dict):
            messages.append(orjson.dumps(item))
        else:
            messages.append(broken(item[0]) if len(item) == 3 else item[0])
    out = VALIDATOR(messages)
    good = [position for position, item in enumerate(items) if isinstance(item, dict)]
    assert out.positions.to_pylist() == good
    assert out.rows.to_pylist() == [expected(items[position]) for position in good]
    found = {r.row: (r.reason, r.field) for r in out.rejections}
    assert found == {
        position: (item[1], item[2] if len(item) == 3 else "")
        for position, item in enumerate(items)
        if not isinstance(item, dict)
    }
    assert [r.row for r in out.rejections] == sorted(found)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | text,
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "x"]), inner)
        ),
        max_leaves=8,
    ).map(orjson.dumps)
)
def test_anything_is_either_a_row_or_a_rejection(message: bytes) -> None:
    out = VALIDATOR([message, orjson.dumps(GOOD)])
    assert out.rows.num_rows + len(out.rejections) == 2
    assert out.positions.to_pylist()[-1] == 1


@given(st.integers(0, 2**64 - 1))
def test_an_integer_in_a_float_field_is_the_nearest_float(value: int) -> None:
    spec = SPEC | {
        "schema": SPEC["schema"]
        | {"fields": SPEC["schema"]["fields"] | {"weight": {"type": "float"}}}
    }
    out = Validator(Pipeline.model_validate(spec), LIMIT)([orjson.dumps(GOOD | {"weight": value})])
    assert out.rows.column("weight").to_pylist() == [float(value)]


@pytest.mark.parametrize(
    ("written", "utc"),
    [
        ("2026-03-01T12:00:00", "2026-03-01T17:00:00"),
        ("2026-07-01 12:00:00", "2026-07-01T16:00:00"),
        ("2026-07-01t12:00:00z", "2026-07-01T12:00:00"),
        ("2026-07-01T12:00:00.123456789+05:30", "2026-07-01T06:30:00.123456"),
        ("2026-11-01T01:30:00", "2026-11-01T05:30:00"),  # shown twice: the earlier
        ("2026-03-08T03:00:00", "2026-03-08T07:00:00"),  # the first that exists after the gap
        ("2026-03-08T01:59:59.999999", "2026-03-08T06:59:59.999999"),
    ],
)
def test_times_become_utc(written: str, utc: str) -> None:
    out = VALIDATOR([orjson.dumps(GOOD | {"sent": written}), orjson.dumps(GOOD)])
    assert not out.rejections
    assert out.rows.column("sent")[0].as_py() == datetime.fromisoformat(utc).replace(tzinfo=UTC)


@given(times(), st.integers(-23 * 60, 23 * 60))
def test_an_offset_says_the_same_instant(time: datetime, minutes: int) -> None:
    shifted = time.astimezone(timezone(timedelta(minutes=minutes)))
    out = VALIDATOR([orjson.dumps(GOOD | {"sent": shifted.isoformat()})])
    assert out.rows.column("sent").to_pylist() == [time]


@pytest.mark.parametrize(
    ("label", "reason", "field"),
    [
        ({"parcel": "p", "lost": None}, Reason.NOT_NULLABLE, "lost"),
        ({"parcel": "p", "lost": 1}, Reason.WRONG_TYPE, "lost"),
        ({"parcel": None, "lost": True}, Reason.NOT_NULLABLE, "parcel"),
        ({"parcel": "p", "lost": True, "sent": "x"}, Reason.WRONG_TYPE, "sent"),
        ({"parcel": "p", "lost": True, "zone": "A"}, Reason.MISSING_FIELD, "sent"),
        ({"lost": True}, Reason.MISSING_FIELD, "parcel"),
    ],
)
def test_a_broken_label_is_refused(label: dict[str, Any], reason: Reason, field: str) -> None:
    out = VALIDATOR(
        [orjson.dumps(GOOD), orjson.dumps(label), orjson.dumps({"parcel": "q", "lost": True})]
    )
    [rejection] = out.rejections
    assert (rejection.row, rejection.reason, rejection.field) == (1, reason, field)
    assert out.actuals.to_pylist() == [False, True]


def test_a_schema_of_id_time_and_target_has_full_records() -> None:
    fields = {name: SPEC["schema"]["fields"][name] for name in ("parcel", "sent", "lost")}
    features = {"hour": {"kind": "date_part", "of": "sent", "part": "hour"}}
    spec = SPEC | {"schema": SPEC["schema"] | {"fields": fields}, "features": features}
    record = {"parcel": "p", "sent": "2026-03-01T12:00:00Z", "lost": True}
    out = Validator(Pipeline.model_validate(spec), LIMIT)(
        [orjson.dumps(record), orjson.dumps({"parcel": "p", "lost": True})]
    )
    assert out.actuals.to_pylist() == [False, True]


ODD = [
    b'{"a": 1, "a": 2}',
    b'{"weight": NaN}',
    b"\xef\xbb\xbf" + orjson.dumps(GOOD),
    b"  " + orjson.dumps(GOOD),
    orjson.dumps(GOOD) + b"\n" + orjson.dumps(GOOD),
    orjson.dumps(GOOD) * 2,
    orjson.dumps(GOOD).replace(b"1.5", b"NaN"),
    orjson.dumps(GOOD).replace(b"3e38", b"-Infinity"),
    orjson.dumps(GOOD).replace(b"1.5", b'1.5, "weight": 2'),
    orjson.dumps(GOOD).replace(b"1.5", b"1\n"),
    orjson.dumps(GOOD).replace(b"p-1", b"p\xff"),
    orjson.dumps(GOOD).replace(b"p-1", b"p\n"),
    orjson.dumps(GOOD).replace(b"p-1", b"p\\u0000"),
    orjson.dumps(GOOD).replace(b"p-1", b"\\ud83d\\ude00"),
    orjson.dumps(GOOD)[:-1],
    b'{"note": ' + b"[" * 4000,
    b'{"note": ' * 400,
    b"{}",
]
"""What two readers of JSON might see differently, or together with its neighbours."""


@st.composite
def changed(draw: st.DrawFn) -> bytes:
    """A good record with a byte more, less or other."""
    raw = orjson.dumps(draw(records))
    at = draw(st.integers(0, len(raw)))
    byte = draw(
        st.sampled_from([bytes([n]) for n in b'0-1.eE+"{}[],: \\n\nuNnIttf\xc3\x80'] + [b""])
    )
    return raw[:at] + byte + raw[at + draw(st.integers(0, 1)) :]


@given(
    st.lists(
        st.one_of(
            records.map(orjson.dumps),
            actuals.map(orjson.dumps),
            changed(),
            st.sampled_from(ODD),
            st.sampled_from([broken(change) for change, _, _ in BREAKS]),
            st.sampled_from([raw for raw, _ in RAW_BREAKS]),
        ),
        max_size=3,
    )
)
def test_many_at_once_are_what_each_is_by_itself(items: list[bytes | None]) -> None:
    messages: list[bytes | None] = [*[orjson.dumps(GOOD)] * 70, *items, orjson.dumps(GOOD)]
    rows, rejections = [], []
    for position, message in enumerate(messages):
        alone = by_itself(message)
        rows += [(position, row, alone.actuals[0].as_py()) for row in alone.rows.to_pylist()]
        rejections += [replace(item, row=position) for item in alone.rejections]
    together = VALIDATOR(messages)
    found = (together.positions, together.rows, together.actuals)
    assert list(zip(*(column.to_pylist() for column in found), strict=True)) == rows
    assert together.rejections == rejections


@lru_cache
def by_itself(message: bytes | None) -> Validated:
    return VALIDATOR([message])


@settings(max_examples=30)
@given(st.lists(st.sampled_from(["record", "label", "null", "absent", "explicit"]), max_size=8))
def test_only_what_lacks_a_field_is_looked_at_alone(kinds: list[str]) -> None:
    freshness = {"max_age": "1s", "max_ahead": "1s"}  # each is judged by its own timestamp
    schema = SPEC["schema"] | {"freshness": freshness}
    validator = Validator(Pipeline.model_validate(SPEC | {"schema": schema}), LIMIT)
    alone: list[int] = []
    one_by_one = validator._one_by_one

    def count(messages: Sequence[bytes | None], *rest: Any) -> Validated:
        alone.append(len(messages))
        return one_by_one(messages, *rest)

    make: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
        "record": lambda row: GOOD | row,
        "label": lambda row: {"parcel": row["parcel"], "lost": True},
        "null": lambda row: GOOD | row | {"weight": None},
        "absent": lambda row: row,
        "explicit": lambda row: dict.fromkeys(GOOD) | {"parcel": row["parcel"], "lost": False},
    }
    order = [*["record"] * 35, *kinds, *["record"] * 35, *kinds]
    came = [datetime(2026, 3, 1, row // 6, row % 6 * 10, tzinfo=UTC) for row in range(len(order))]
    messages = [
        orjson.dumps(make[kind]({"parcel": f"p{row}", "sent": came[row].isoformat()}))
        for row, kind in enumerate(order)
    ]
    with patch.object(validator, "_one_by_one", count):
        out = validator(messages, [int(time.timestamp() * 1000) for time in came])
    good = [row for row, kind in enumerate(order) if kind in {"record", "label"}]
    assert out.positions.to_pylist() == good
    assert out.rows.column("parcel").to_pylist() == [f"p{row}" for row in good]
    assert out.actuals.to_pylist() == [order[row] == "label" for row in good]
    reasons = {
        "null": (Reason.NOT_NULLABLE, "weight"),
        "absent": (Reason.MISSING_FIELD, "weight"),
        "explicit": (Reason.NOT_NULLABLE, "sent"),
    }
    assert [(item.row, (item.reason, item.field)) for item in out.rejections] == [
        (row, reasons[kind]) for row, kind in enumerate(order) if kind in reasons
    ]
    assert sum(alone) == len([kind for kind in order if kind != "record"])


def test_ordinary_records_are_read_without_a_look_at_each() -> None:
    lines = JsonLines(PIPELINE.schema_.fields)
    columns = lines.read([orjson.dumps(GOOD), orjson.dumps(GOOD | {"note": "\u00fc"})])
    assert columns is not None
    assert dict(zip(GOOD, [column[0].as_py() for column in columns], strict=True)) == GOOD
    assert columns[list(GOOD).index("note")].to_pylist() == [None, "\u00fc"]
    assert lines.read([]) is None


def test_no_message_gives_an_empty_batch() -> None:
    out = VALIDATOR([])
    assert out.rows.num_rows == 0
    assert out.rows.schema == VALIDATOR.schema
    assert math.prod(out.rows.shape) == 0
