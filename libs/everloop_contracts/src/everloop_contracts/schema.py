"""The sections `schema` and `target`: what a record holds and what is predicted from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum
from functools import cache
from typing import Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from everloop_contracts.rules import parse
from everloop_contracts.spec import Duration, Misfit, Misfits, Spec

__all__ = [
    "NUMERIC",
    "FieldSpec",
    "FieldType",
    "Freshness",
    "Rule",
    "Schema",
    "Target",
    "Task",
]


class FieldType(StrEnum):
    """Type of a field of a record."""

    STRING = "string"
    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    TIMESTAMP = "timestamp"


NUMERIC = (FieldType.INT, FieldType.FLOAT)


@cache
def _zones() -> frozenset[str]:
    """Finding them takes longer than all else about a specification: it opens every file of the zone database."""
    return frozenset(available_timezones())


class FieldSpec(Spec):
    """One field of a record."""

    type: FieldType
    nullable: bool = False
    min: float | None = None
    """Smallest value that is accepted (numbers)."""
    max: float | None = None
    """Largest value that is accepted (numbers)."""
    categories: tuple[str, ...] | None = None
    """Values that are accepted (strings); anything where not given."""
    pattern: str | None = None
    """Regular expression, RE2 syntax, that the value matches somewhere; `^…$` for the whole of it (strings)."""
    max_length: int | None = Field(default=None, ge=1)
    """Most characters that are accepted (strings)."""
    timezone: str = "UTC"
    """Zone whose wall clock `date_part` features read (timestamps)."""
    description: str = ""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in _zones():
            raise ValueError(f"no such time zone: {value}")
        return value

    @field_validator("pattern")
    @classmethod
    def _is_re2(cls, value: str | None) -> str | None:
        if value is not None and (fault := _fault(value)):
            raise ValueError(f"no regular expression of RE2: {fault}")
        return value

    @model_validator(mode="after")
    def _constraints_fit_the_type(self) -> Self:
        if self.type not in NUMERIC and (self.min is not None or self.max is not None):
            raise ValueError("min and max are for int and float fields")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) cannot exceed max ({self.max:g})")
        if self.type is not FieldType.STRING:
            for name in ("categories", "pattern", "max_length"):
                if getattr(self, name) is not None:
                    verb = "are" if name == "categories" else "is"
                    raise ValueError(f"{name} {verb} for string fields")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The zone as an object."""
        return ZoneInfo(self.timezone)


def _fault(pattern: str) -> str:
    """What is wrong with a regular expression; empty where nothing is.

    A client without pyarrow, which brings RE2, finds what Python's own reading finds; ingest always has it.
    """
    try:
        import pyarrow as pa
        import pyarrow.compute as pc
    except ModuleNotFoundError:
        try:
            re.compile(pattern)
        except re.error as error:
            return str(error)
        return ""
    try:
        pc.match_substring_regex(pa.array(["", None], pa.string()), pattern)
    except pa.ArrowInvalid as error:
        return str(error).removeprefix("Invalid regular expression: ")
    return ""


class Rule(Spec):
    """What the fields of one record must be to each other; see `everloop_contracts.rules` for the conditions."""

    name: str = Field(min_length=1, max_length=100)
    """What a rejection calls it."""
    check: str
    """Condition that must hold. A comparison with a null holds."""
    when: str = ""
    """Condition under which it must; always where not given. A comparison with a null does not apply."""


class Freshness(Spec):
    """How far a record's event time may be from the Kafka timestamp of its message; late labels may be of any age."""

    max_age: Duration | None = None
    """How much older the event may be."""
    max_ahead: Duration | None = None
    """How much newer the event may be."""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.max_age is None and self.max_ahead is None:
            raise ValueError("max_age or max_ahead is wanted")
        return self


class Schema(Spec):
    """Shape of a record: a flat JSON object."""

    version: int = Field(default=1, ge=1)
    """Number of this schema. What has been served may get further nullable fields under its number; any other change
    takes a higher one."""
    id: str
    """Field that names the record; the last record with an id wins, and late labels are joined by it."""
    time: str
    """Field that says when the record happened (event time)."""
    fields: dict[str, FieldSpec]
    rules: tuple[Rule, ...] = ()
    """Conditions across fields."""
    freshness: Freshness | None = None
    """How old a record may be when it comes; of any age where not given."""
    max_record_bytes: int | None = Field(default=None, ge=1)
    """Largest record, in bytes; ingest has a limit of its own besides."""

    @model_validator(mode="after")
    def _keys_exist(self) -> Self:
        found: list[Misfit] = [
            (("fields", name), "names that start with everloop_ are reserved")
            for name in self.fields
            if name.startswith("everloop_")
        ]
        if len({name.lower() for name in self.fields}) < len(self.fields):
            found.append((("fields",), "two names are the same but for case"))
        for key, wanted in (("id", FieldType.STRING), ("time", FieldType.TIMESTAMP)):
            name = getattr(self, key)
            if name not in self.fields:
                found.append(((key,), f"there is no field '{name}'"))
            elif self.fields[name].type is not wanted or self.fields[name].nullable:
                found.append(((key,), f"field '{name}' must be of type {wanted} and not nullable"))
        found += self._rule_misfits()
        if found:
            raise Misfits(found)
        return self

    def _rule_misfits(self) -> Iterator[Misfit]:
        names = [rule.name for rule in self.rules]
        for number, rule in enumerate(self.rules):
            if rule.name in names[:number]:
                yield ("rules", number, "name"), f"there is another rule '{rule.name}'"
            for key in ("check", "when"):
                text = getattr(rule, key)
                if not text and key == "when":
                    continue
                try:
                    parse(text, self.fields)
                except ValueError as error:
                    yield ("rules", number, key), str(error)


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class Target(Spec):
    """What is predicted."""

    field: str
    task: Task
