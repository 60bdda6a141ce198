"""Rows as the services read them: JSON objects, whatever library the values came from."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

__all__ = ["Row", "Unsendable", "plain", "to_json"]

Row = Mapping[str, Any]
_INT64 = range(-(2**63), 2**63)


class Unsendable(ValueError):
    """A value that JSON has no word for.

    Attributes:
        field: Its name in the row.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def plain(row: Row) -> dict[str, Any]:
    """Returns a row of text, numbers, true, false and null.

    Scalars of NumPy, pandas and `decimal` become what they stand for, times RFC 3339; NaN, NaT and NA are null, because
    that is how tables write a missing value.

    Raises:
        Unsendable: A value is something else, or infinite.

    >>> from datetime import datetime, UTC
    >>> plain({"a": float("nan"), "t": datetime(2013, 1, 1, 5, tzinfo=UTC)})
    {'a': None, 't': '2013-01-01T05:00:00+00:00'}
    """
    return {_name(key): _value(key, value) for key, value in row.items()}


def to_json(row: Row) -> bytes:
    """Returns a row as JSON.

    Raises:
        Unsendable: See `plain`.
    """
    return json.dumps(plain(row), allow_nan=False).encode()


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise Unsendable(str(key), f"a field's name is text, not {type(key).__name__}")
    return str(key)


def _value(field: str, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(field, str(value))
    if isinstance(value, int):
        return _integer(field, int(value))
    if isinstance(value, float):
        return _finite(field, float(value))
    if isinstance(value, Decimal):
        whole = value.is_finite() and value == value.to_integral_value()
        return _integer(field, int(value)) if whole else _finite(field, float(value))
    # Nobody has such values who has not imported their library, which is slow to import.
    if (pandas := sys.modules.get("pandas")) and (value is pandas.NA or value is pandas.NaT):
        return None
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if (numpy := sys.modules.get("numpy")) and isinstance(value, numpy.generic):
        if isinstance(value, numpy.bool_):
            return bool(value)
        if isinstance(value, numpy.datetime64):
            known = not numpy.isnat(value)
            return str(numpy.datetime_as_string(value, unit="us")) if known else None
        # A timedelta64 is an integer to NumPy.
        if isinstance(value, numpy.integer) and not isinstance(value, numpy.timedelta64):
            return _integer(field, int(value))
        if isinstance(value, numpy.floating):
            return _finite(field, float(value))
    raise Unsendable(
        field, f"a {type(value).__name__} is not text, a number, true, false, null or a time"
    )


def _text(field: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Unsendable(field, f"half a character at {error.start} cannot be written") from error
    return value


def _integer(field: str, value: int) -> int:
    if value not in _INT64:
        raise Unsendable(field, f"{value} does not fit 64 bits")
    return value


def _finite(field: str, value: float) -> float | None:
    if math.isinf(value):
        raise Unsendable(field, f"{value} is not a number that JSON can hold")
    return None if math.isnan(value) else value
