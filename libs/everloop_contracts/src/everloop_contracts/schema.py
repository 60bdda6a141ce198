"""The sections `schema` and `target`: what a record holds and what is predicted from it."""

from __future__ import annotations

from enum import StrEnum
from functools import cache
from typing import Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import field_validator, model_validator

from everloop_contracts.spec import Misfit, Misfits, Spec

__all__ = ["NUMERIC", "FieldSpec", "FieldType", "Schema", "Target", "Task"]


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
    timezone: str = "UTC"
    """Zone whose wall clock `date_part` features read (timestamps)."""
    description: str = ""

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in _zones():
            raise ValueError(f"no such time zone: {value}")
        return value

    @model_validator(mode="after")
    def _constraints_fit_the_type(self) -> Self:
        if self.type not in NUMERIC and (self.min is not None or self.max is not None):
            raise ValueError("min and max are for int and float fields")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) cannot exceed max ({self.max:g})")
        if self.categories is not None and self.type is not FieldType.STRING:
            raise ValueError("categories are for string fields")
        return self

    @property
    def zone(self) -> ZoneInfo:
        """The zone as an object."""
        return ZoneInfo(self.timezone)


class Schema(Spec):
    """Shape of a record: a flat JSON object."""

    id: str
    """Field that names the record; the last record with an id wins, and late labels are joined by it."""
    time: str
    """Field that says when the record happened (event time)."""
    fields: dict[str, FieldSpec]

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
        if found:
            raise Misfits(found)
        return self


class Task(StrEnum):
    """What is predicted."""

    BINARY = "binary"
    MULTICLASS = "multiclass"
    REGRESSION = "regression"


class Target(Spec):
    """What is predicted."""

    field: str
    task: Task
