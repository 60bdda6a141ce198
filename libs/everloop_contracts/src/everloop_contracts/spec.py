"""What the sections of a pipeline's specification are made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema

__all__ = ["AsWritten", "Duration", "KeyPath", "Misfit", "Misfits", "Spec", "Window"]

KeyPath = tuple[str | int, ...]
Misfit = tuple[KeyPath, str]
"""Path of the key to look at, from the section that was checked, and what is wrong with it."""

DURATION = re.compile(r"^(\d+(?:\.\d+)?)(ms|s|m|h|d)$")
UNIT_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Spec(BaseModel):
    """A section: unknown keys are refused, and it does not change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True
    )


class Misfits(ValueError):
    """What a check across several keys found.

    Attributes:
        found: One or more.
    """

    def __init__(self, found: Sequence[Misfit]) -> None:
        super().__init__("; ".join(f"{'.'.join(map(str, path))}: {text}" for path, text in found))
        self.found = found


def _duration(value: object) -> object:
    if isinstance(value, str) and (match := DURATION.match(value)):
        try:
            return timedelta(seconds=float(match[1]) * UNIT_SECONDS[match[2]])
        except OverflowError as error:
            raise ValueError("a duration is at most 999999999 days") from error
    if isinstance(value, timedelta):
        return value
    raise ValueError("a duration is a number with a unit: 30s, 10m, 2h or 7d")


def _window(value: object) -> object:
    if value == "all":
        return value
    try:
        return _duration(value)
    except ValueError as error:
        raise ValueError(f"'all' or a duration is wanted; {error}") from error


def _written(value: Literal["all"] | timedelta) -> str:
    """In JSON as it is written in YAML, so that it can be read again."""
    return value if isinstance(value, str) else f"{value.total_seconds():f}s"


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": DURATION.pattern}),
]
Window = Annotated[
    Literal["all"] | timedelta,
    BeforeValidator(_window),
    PlainSerializer(_written, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": rf"^all$|{DURATION.pattern}"}),
]


class AsWritten(GenerateJsonSchema):
    """JSON Schema whose defaults stand as a person writes them: `1d`, where pydantic says `P1D`."""

    def encode_default(self, dft: Any) -> Any:
        """Encodes one default."""
        if not isinstance(dft, timedelta):
            return super().encode_default(dft)
        amounts = [(dft / timedelta(seconds=size), unit) for unit, size in UNIT_SECONDS.items()]
        # The largest unit that holds it without a fraction; milliseconds come first.
        return next(
            (f"{n:.0f}{unit}" for n, unit in reversed(amounts) if n >= 1 and n % 1 == 0), "0s"
        )
