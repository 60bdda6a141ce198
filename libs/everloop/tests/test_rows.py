"""Values as libraries hold them, and as they go out."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import pytest

from everloop.rows import Unsendable, plain, to_json


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (np.float64(1.5), "1.5"),
        (np.float32(0.5), "0.5"),
        (np.int64(-5), "-5"),
        (np.uint8(5), "5"),
        (np.bool_(True), "true"),
        (np.str_("red"), '"red"'),
        (Decimal("5"), "5"),
        (Decimal("5.25"), "5.25"),
        (2**63 - 1, "9223372036854775807"),
        (True, "true"),
        ("é", '"\\u00e9"'),
        (None, "null"),
        # Missing values, as each library writes them.
        (math.nan, "null"),
        (np.float64("nan"), "null"),
        (np.datetime64("NaT"), "null"),
        (Decimal("NaN"), "null"),
        (pd.NaT, "null"),
        (pd.NA, "null"),
        # Times.
        (datetime(2013, 1, 1, 5, tzinfo=UTC), '"2013-01-01T05:00:00+00:00"'),
        (pd.Timestamp("2013-01-01 05:15", tz="America/New_York"), '"2013-01-01T05:15:00-05:00"'),
        (pd.Timestamp("2013-01-01 05:15"), '"2013-01-01T05:15:00"'),
        (np.datetime64("2013-01-01T05:15:00", "ns"), '"2013-01-01T05:15:00.000000"'),
        (date(2013, 1, 1), '"2013-01-01"'),
        (UUID(int=7), '"00000000-0000-0000-0000-000000000007"'),
    ],
    ids=lambda value: f"{type(value).__name__} {value}",
)
def test_a_value_goes_out_as_the_json_it_stands_for(value, sent):
    assert to_json({"x": value}) == f'{{"x": {sent}}}'.encode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.inf, "inf"),
        (np.float32("-inf"), "-inf"),
        (2**64, "64 bits"),
        (object(), "object"),
        (np.array([1, 2]), "ndarray"),
        (np.timedelta64(1, "h"), "timedelta64"),
        (1 + 2j, "complex"),
        ([1], "list"),
        ({"a": 1}, "dict"),
        (b"bytes", "bytes"),
        ("\ud800", "half a character"),
    ],
)
def test_what_json_has_no_word_for_is_named_with_its_field(value, said):
    with pytest.raises(Unsendable, match=said) as caught:
        plain({"fine": 1, "x": value})
    assert caught.value.field == "x"


def test_a_column_s_name_is_text():
    with pytest.raises(Unsendable, match="name is text, not int"):
        plain({0: "a"})  # type: ignore[dict-item]


def test_the_rows_of_a_frame_are_records():
    frame = pd.DataFrame(
        {
            "id": ["a", "b"],
            "at": [pd.Timestamp("2013-01-01T05:00Z"), pd.NaT],
            "seats": pd.array([149, None], dtype="Int64"),
            "gust": [12.5, None],
            "late": np.array([True, False]),
        }
    )
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    assert [json.loads(to_json(row)) for row in rows] == [
        {"id": "a", "at": "2013-01-01T05:00:00+00:00", "seats": 149, "gust": 12.5, "late": True},
        {"id": "b", "at": None, "seats": None, "gust": None, "late": False},
    ]
