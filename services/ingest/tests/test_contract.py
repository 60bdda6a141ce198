"""Patterns, lengths, rules across fields, freshness and the size of a record: what a pipeline declares beyond types."""

from __future__ import annotations

import operator
import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.domain import Reason
from everloop_ingest.validate import Validator

FIELDS: dict[str, Any] = {
    "parcel": {"type": "string", "pattern": "^p-[0-9]+$"},
    "sent": {"type": "timestamp"},
    "arrived": {"type": "timestamp", "nullable": True},
    "weight": {"type": "float", "nullable": True},
    "pieces": {"type": "int", "nullable": True},
    "zone": {"type": "string", "nullable": True, "max_length": 3},
    "lost": {"type": "bool", "nullable": True},
}
RULES = [
    {"name": "order", "check": "arrived >= sent"},
    {"name": "heavy", "check": "weight > 1 and weight <= pieces", "when": "zone == 'far'"},
    {"name": "known", "check": "weight is not null", "when": "lost == true"},
]
GOOD = {"parcel": "p-1", "sent": "2026-03-01T12:00:00Z", "weight": 2.0, "pieces": 3}
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def validator(**schema: Any) -> Validator:
    section = {"id": "parcel", "time": "sent", "fields": FIELDS} | schema
    spec = {
        "pipeline": "parcels",
        "schema": section,
        "target": {"field": "lost", "task": "binary"},
        "features": {"weight": {"kind": "number", "of": "weight"}},
        "training": {"families": ["logistic_regression"]},
    }
    return Validator(Pipeline.model_validate(spec), 4096)


def body(**changes: Any) -> bytes:
    return orjson.dumps(GOOD | changes)


@pytest.mark.parametrize(
    ("change", "reason", "field", "said"),
    [
        (
            {"parcel": "q-1"},
            Reason.PATTERN_MISMATCH,
            "parcel",
            '"q-1" is not matched by ^p-[0-9]+$',
        ),
        ({"parcel": "p-1\n"}, Reason.PATTERN_MISMATCH, "parcel", "is not matched by"),
        ({"parcel": "p-1\0"}, Reason.PATTERN_MISMATCH, "parcel", "is not free of NUL characters"),
        ({"zone": "abcd"}, Reason.TOO_LONG, "zone", '"abcd" is not of at most 3 characters'),
        (
            {"arrived": "2026-03-01T11:00:00Z"},
            Reason.RULE_BROKEN,
            "arrived",
            'order: wanted is arrived >= sent; arrived is "2026-03-01T11:00:00+00:00", sent is',
        ),
        (
            {"zone": "far", "weight": 9},
            Reason.RULE_BROKEN,
            "weight",
            "heavy: wanted is weight > 1 and weight <= pieces, where zone == 'far'; weight is 9.0, pieces is 3",
        ),
        (
            {"lost": True, "weight": None},
            Reason.RULE_BROKEN,
            "weight",
            "known: wanted is weight is",
        ),
        # Its own field's contract comes first: a broken value is none to compare.
        ({"weight": "x", "lost": True}, Reason.WRONG_TYPE, "weight", ""),
    ],
)
def test_what_breaks_the_contract_is_told_what_was_wanted(
    change: dict[str, Any], reason: Reason, field: str, said: str
) -> None:
    out = validator(rules=RULES)([body(), body(**change), body()])
    [rejection] = out.rejections
    assert (rejection.row, rejection.reason, rejection.field) == (1, reason, field)
    assert said in rejection.message
    assert out.positions.to_pylist() == [0, 2]


@pytest.mark.parametrize(
    "change",
    [
        {"zone": "äöü"},  # characters, not bytes
        {"zone": None},
        {"arrived": None},  # a comparison with a null holds
        {"zone": "far", "weight": None},
        {"zone": None, "weight": 9},  # and does not apply
        {"arrived": "2026-03-01T12:00:00Z"},
    ],
)
def test_what_keeps_the_contract_is_a_row(change: dict[str, Any]) -> None:
    assert not validator(rules=RULES)([body(**change)]).rejections


def test_late_labels_are_no_whole_records() -> None:
    check = validator(
        rules=[{"name": "known", "check": "weight is not null"}], freshness={"max_age": "1h"}
    )
    old = orjson.dumps({"parcel": "p-1", "lost": True, "sent": "1999-01-01T00:00:00Z"})
    out = check([old, orjson.dumps({"parcel": "p-1", "lost": True})])
    assert out.actuals.to_pylist() == [True, True]


_OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
some_numbers = st.none() | st.integers(-3, 3)
some_records = st.fixed_dictionaries(
    {
        "weight": some_numbers,
        "pieces": some_numbers,
        "zone": st.sampled_from([None, "a", "b"]),
    }
)


@given(
    st.lists(some_records, max_size=12),
    st.sampled_from([*_OPERATORS]),
    st.sampled_from(["weight", "pieces"]),
    st.sampled_from(["weight", "pieces", "0", "-1.5"]),
    st.sampled_from([None, "zone == 'a'", "zone != 'a'", "zone is null"]),
)
def test_columns_are_judged_as_one_row_after_the_other_would_be(
    records: list[dict[str, Any]], sign: str, left: str, right: str, when: str | None
) -> None:
    rule = {"name": "r", "check": f"{left} {sign} {right}"} | ({"when": when} if when else {})
    out = validator(rules=[rule])([body(**record) for record in records])

    def breaks(record: dict[str, Any]) -> bool:
        one = record[left]
        other = record[right] if right in record else float(right)
        applies = {
            None: True,
            "zone == 'a'": record["zone"] == "a",
            "zone != 'a'": record["zone"] == "b",
            "zone is null": record["zone"] is None,
        }[when]
        return applies and None not in (one, other) and not _OPERATORS[sign](one, other)

    assert [item.row for item in out.rejections] == [
        row for row, record in enumerate(records) if breaks(record)
    ]
    assert {item.reason for item in out.rejections} <= {Reason.RULE_BROKEN}


@given(
    st.lists(st.text("ab-1\n", max_size=5), max_size=8),
    st.sampled_from(["^a", "b$", "1", "^(ab)*$"]),
)
def test_a_pattern_is_looked_for_anywhere(texts: list[str], pattern: str) -> None:
    fields = FIELDS | {"zone": {"type": "string", "pattern": pattern}}
    out = validator(fields=fields)([body(zone=text) for text in texts])
    # Python's `$` also matches before a last line break, RE2's does not.
    wanted = re.compile(pattern.replace("$", r"\Z"))
    found = [row for row, text in enumerate(texts) if wanted.search(text)]
    assert out.positions.to_pylist() == found


@given(
    st.lists(st.integers(-7200_000, 7200_000), max_size=8),
    st.sampled_from(
        [{"max_age": "1h"}, {"max_ahead": "30m"}, {"max_age": "1h", "max_ahead": "0s"}]
    ),
)
def test_freshness_is_judged_against_the_message_whenever_it_is_read(
    ages: list[int], freshness: dict[str, str]
) -> None:
    came = int(NOON.timestamp() * 1000)
    sent = [(NOON - timedelta(milliseconds=age)).isoformat() for age in ages]
    check = validator(freshness=freshness)
    out = check([body(sent=text) for text in sent], [came] * len(ages))
    old = 3600_000 if "max_age" in freshness else None
    ahead = {"30m": 1800_000, "0s": 0}.get(freshness.get("max_ahead", ""))
    expected = {
        row: Reason.TOO_OLD if age > 0 else Reason.IN_FUTURE
        for row, age in enumerate(ages)
        if (old is not None and age > old) or (ahead is not None and -age > ahead)
    }
    assert {item.row: item.reason for item in out.rejections} == expected
    assert {item.field for item in out.rejections} <= {"sent"}


def test_without_a_timestamp_a_record_comes_now() -> None:
    check = validator(freshness={"max_age": "1h", "max_ahead": "1h"})
    now = datetime.fromtimestamp(time.time(), UTC)
    times = [now, now - timedelta(hours=2), now + timedelta(hours=2)]
    out = check([body(sent=when.isoformat()) for when in times])
    assert [item.reason for item in out.rejections] == [Reason.TOO_OLD, Reason.IN_FUTURE]
    assert "s older than its message, at most 1:00:00 is accepted" in out.rejections[0].message


@pytest.mark.parametrize(("declared", "limit"), [(200, 200), (None, 4096), (99_999, 4096)])
def test_the_smaller_limit_of_a_records_size_holds(declared: int | None, limit: int) -> None:
    check = validator(max_record_bytes=declared)
    rest = limit - len(body(zone=None))
    fits, beyond = body(zone=None) + b" " * rest, body(zone=None) + b" " * (rest + 1)
    out = check([fits, beyond])
    [rejection] = out.rejections
    assert (rejection.row, rejection.reason) == (1, Reason.RECORD_TOO_LARGE)
    assert f"at most {limit} are accepted" in rejection.message
