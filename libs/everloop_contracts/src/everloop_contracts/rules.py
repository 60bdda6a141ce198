"""Rules across the fields of a record: comparisons, read from their text when the pipeline is loaded.

    check: scheduled_arrival > scheduled_departure and distance <= 10000
    when: origin == 'JFK' and gate is not null

A comparison is `<field or value> <operator> <field or value>` with ==, !=, <, <=, > or >=, or `<field> is [not] null`;
several are joined by `and`. Values are numbers, 'texts' or "texts", true and false; a time is a text with its offset.
A field whose name is no plain word goes between backquotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from everloop_contracts.schema import FieldSpec

__all__ = ["Comparison", "Condition", "FieldName", "parse"]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator>==|!=|<=|>=|<|>)
        |(?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w.])
        |'(?P<single>[^']*)'
        |"(?P<double>[^"]*)"
        |`(?P<quoted>[^`]+)`
        |(?P<word>[^\W\d][\w-]*)
    )""",
    re.VERBOSE,
)
_KEYWORDS = ("and", "is", "not", "null", "true", "false")
_EQUALITY = ("==", "!=")
_INT64 = range(-(2**63), 2**63)
_MISREAD = (
    "reads '<field> > 0', '<field> <= <other field>' or '<field> is not null', joined by 'and'"
)


@dataclass(frozen=True, slots=True)
class FieldName:
    """A field of the record."""

    name: str


Value: TypeAlias = "bool | int | float | str | datetime"


@dataclass(frozen=True, slots=True)
class Comparison:
    """One comparison.

    Attributes:
        left: a field, or a value.
        operator: ==, !=, <, <=, >, >=, `is null` or `is not null`.
        right: a field, or a value; None behind `is null` and `is not null`.
    """

    left: FieldName | Value
    operator: str
    right: FieldName | Value | None

    @property
    def fields(self) -> list[str]:
        """The fields that are compared, as they come in the text."""
        return [side.name for side in (self.left, self.right) if isinstance(side, FieldName)]


Condition: TypeAlias = tuple[Comparison, ...]
"""Comparisons that hold together; without any, it always holds."""


def parse(text: str, fields: Mapping[str, FieldSpec]) -> Condition:
    """Reads a condition and checks that its comparisons fit the fields' types.

    Raises:
        ValueError: what does not fit, for a person.
    """
    tokens = list(_tokens(text))
    parts: list[list[tuple[str, str]]] = [[]]
    for token in tokens:
        if token == ("word", "and"):
            parts.append([])
        else:
            parts[-1].append(token)
    return tuple(_typed(_comparison(part, text), fields) for part in parts)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ValueError(
                f"cannot read {text[position:].strip()[:40]!r}; a condition {_MISREAD}"
            )
        yield match.lastgroup, match[match.lastgroup]
        position = match.end()


def _comparison(tokens: list[tuple[str, str]], text: str) -> Comparison:
    kinds = [kind for kind, _ in tokens]
    words = [token for _, token in tokens[1:]]
    if tokens and words in (["is", "null"], ["is", "not", "null"]):
        left = _operand(*tokens[0])
        if isinstance(left, FieldName):
            return Comparison(left, " ".join(words), None)
    if len(tokens) != 3 or kinds[1] != "operator":
        raise ValueError(f"{text!r} is no condition: it {_MISREAD}")
    return Comparison(_operand(*tokens[0]), tokens[1][1], _operand(*tokens[2]))


def _operand(kind: str, token: str) -> FieldName | Value:
    if kind == "number":
        whole = not set(token) & set(".eE") and int(token) in _INT64
        return int(token) if whole else float(token)
    if kind in ("single", "double"):
        return token
    if kind == "word" and token in ("true", "false"):
        return token == "true"
    if kind == "operator" or (kind == "word" and token in _KEYWORDS):
        raise ValueError(
            f"{token!r} stands where a field or a value is wanted; a condition {_MISREAD}"
        )
    return FieldName(token)


def _typed(found: Comparison, fields: Mapping[str, FieldSpec]) -> Comparison:
    """The comparison with its texts read as what the other side is."""
    if not found.fields:
        raise ValueError("a comparison names at least one field; texts stand in quotes")
    for name in found.fields:
        if name not in fields:
            raise ValueError(f"there is no field '{name}'; texts stand in quotes")
    if found.right is None:
        return found
    left, right = _kind(found.left, fields), _kind(found.right, fields)
    if left == "timestamp" and isinstance(found.right, str):
        return replace(found, right=_time(found.right))
    if right == "timestamp" and isinstance(found.left, str):
        return replace(found, left=_time(found.left))
    if left != right:
        raise ValueError(f"a {left} cannot be compared with a {right}")
    if left == "bool" and found.operator not in _EQUALITY:
        raise ValueError("truth values are compared by == and !=")
    return found


def _kind(side: FieldName | Value, fields: Mapping[str, FieldSpec]) -> str:
    if isinstance(side, FieldName):
        kind = str(fields[side.name].type)
        return "number" if kind in ("int", "float") else kind
    if isinstance(side, bool):
        return "bool"
    if isinstance(side, str):
        return "string"
    return "number"


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"'{text}' is no RFC 3339 time") from error
    if time.tzinfo is None:
        raise ValueError(f"'{text}' has no offset: write '{text}Z' for UTC")
    return time
