"""How conditions across fields are read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everloop_contracts.rules import Comparison, FieldName, parse
from everloop_contracts.schema import FieldSpec, FieldType

FIELDS = {
    "size": FieldSpec(type=FieldType.FLOAT),
    "pieces": FieldSpec(type=FieldType.INT, nullable=True),
    "zone": FieldSpec(type=FieldType.STRING),
    "fragile": FieldSpec(type=FieldType.BOOL),
    "sent": FieldSpec(type=FieldType.TIMESTAMP),
    "left-at": FieldSpec(type=FieldType.TIMESTAMP),
    "a field": FieldSpec(type=FieldType.FLOAT),
}
SIZE, PIECES, ZONE = FieldName("size"), FieldName("pieces"), FieldName("zone")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("size > 0", [Comparison(SIZE, ">", 0)]),
        ("  size>=-1.5e3 ", [Comparison(SIZE, ">=", -1500.0)]),
        ("0 < size", [Comparison(0, "<", SIZE)]),
        ("pieces <= size", [Comparison(PIECES, "<=", SIZE)]),
        ("pieces == 9999999999999999999", [Comparison(PIECES, "==", 1e19)]),
        ("zone != 'A and B'", [Comparison(ZONE, "!=", "A and B")]),
        ('zone == "it\'s"', [Comparison(ZONE, "==", "it's")]),
        ("fragile == true", [Comparison(FieldName("fragile"), "==", True)]),
        ("pieces is null", [Comparison(PIECES, "is null", None)]),
        ("pieces is not null", [Comparison(PIECES, "is not null", None)]),
        ("`a field` > 0", [Comparison(FieldName("a field"), ">", 0)]),
        ("sent < left-at", [Comparison(FieldName("sent"), "<", FieldName("left-at"))]),
        (
            "sent >= '2026-01-01T00:00:00Z'",
            [Comparison(FieldName("sent"), ">=", datetime(2026, 1, 1, tzinfo=UTC))],
        ),
        (
            "size > 0 and zone == 'A' and pieces is not null",
            [
                Comparison(SIZE, ">", 0),
                Comparison(ZONE, "==", "A"),
                Comparison(PIECES, "is not null", None),
            ],
        ),
    ],
)
def test_a_condition_says_what_it_says(text: str, found: list[Comparison]) -> None:
    assert parse(text, FIELDS) == tuple(found)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no condition"),
        ("size", "is no condition"),
        ("size > 0 or size < 9", "is no condition"),
        ("size > 0 and", "is no condition"),
        ("size > 0 and and size < 9", "is no condition"),
        ("0 < size < 9", "is no condition"),
        ("size = 0", "cannot read '= 0'"),
        ("size > 1_000", "cannot read '1_000'"),
        ("__import__('os')", "cannot read"),
        ("zone == 'A", "cannot read"),
        ("size > null", "'null' stands where a field or a value is wanted"),
        ("> > 1", "'>' stands where a field or a value is wanted"),
        ("1 is null", "is no condition"),
        ("colour == 'red'", "there is no field 'colour'"),
        ("zone == A", "there is no field 'A'; texts stand in quotes"),
        ("1 < 2", "a comparison names at least one field"),
        ("size > 'big'", "a number cannot be compared with a string"),
        ("fragile == 1", "a bool cannot be compared with a number"),
        ("fragile > true", "truth values are compared by == and !="),
        ("sent > 5", "a timestamp cannot be compared with a number"),
        ("sent > zone", "a timestamp cannot be compared with a string"),
        ("sent > 'noon'", "'noon' is no RFC 3339 time"),
        ("sent > '2026-01-01T00:00:00'", "has no offset"),
    ],
)
def test_what_is_no_condition_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse(text, FIELDS)
    assert said in str(caught.value)


numbers = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
spaces = st.sampled_from(["", " ", "  "])


@given(st.sampled_from(["==", "!=", "<", "<=", ">", ">="]), numbers, spaces, st.booleans())
def test_what_is_written_is_read(operator: str, value: Any, gap: str, first: bool) -> None:
    sides = [str(value), "size"] if first else ["size", str(value)]
    [found] = parse(f"{sides[0]}{gap}{operator}{gap}{sides[1]}", FIELDS)
    assert found.operator == operator
    assert (found.left if first else found.right) == value
    assert found.fields == ["size"]


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert all(part.fields for part in parse(text, FIELDS))
    except ValueError as error:
        assert str(error)
