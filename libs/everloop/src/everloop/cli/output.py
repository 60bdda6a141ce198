"""How answers look: tables for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

__all__ = ["console", "enum_name", "plain", "print_json", "sparkline", "table", "when"]

console = Console(highlight=False)

_ANY_WIDTH = 100_000
_LEAST_FOLDED = 24
_BARS = "▁▂▃▄▅▆▇█"


def plain(value: Any) -> Any:
    """Turns an answer into what JSON holds: enums by their short name, times in RFC 3339, int64 as numbers.

    JSON has no word for a number that is none: NaN and infinity are null.

    >>> plain({"roc_auc": float("nan"), "rows": [1, 0.5]})
    {'roc_auc': None, 'rows': [1, 0.5]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Timestamp):
        return value.ToJsonString() if value.seconds or value.nanos else None
    if isinstance(value, Message):
        return {field.name: _field(value, field) for field in value.DESCRIPTOR.fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: plain(item) for key, item in sorted(value.items())}
    if field.is_repeated:
        return [plain(item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    if field.enum_type is not None:
        return enum_name(field, value)
    return plain(value)


def enum_name(field: Any, value: int) -> str:
    """Returns an enum's value as a person says it: `STAGE_PRODUCTION` is `production`."""
    name = str(field.enum_type.values_by_number[value].name)
    prefix = "".join(f"_{c}" if c.isupper() else c for c in field.enum_type.name).upper().strip("_")
    return name.removeprefix(f"{prefix}_").lower()


def print_json(value: Any) -> None:
    """Prints an answer as JSON."""
    json.dump(plain(value), sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    print()


def table(columns: Iterable[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Prints a table; a column whose title ends in `#` is aligned to the right. `empty` is said if there is no row.

    Where a terminal is too narrow, the widest column is folded; where that is not enough, each row is a block of lines.
    """
    titles = tuple(columns)
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        console.print(f"[dim]{empty}[/]")
        return
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        right = title.endswith("#")
        grid.add_column(title.removesuffix("#"), justify="right" if right else "left", no_wrap=True)
    for row in cells:
        grid.add_row(*row)
    width = Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), grid).maximum
    if width <= console.width or not console.is_terminal:
        grid.width = width
        console.print(grid, soft_wrap=True)
        return
    widths = [
        max(Text.from_markup(text).cell_len for text in column)
        for column in zip(titles, *cells, strict=True)
    ]
    widest = widths.index(max(widths))
    room = widths[widest] - (width - console.width)
    if room >= _LEAST_FOLDED:
        grid.columns[widest].no_wrap = False
        grid.columns[widest].overflow = "fold"
        grid.columns[widest].width = room
        console.print(grid)
        return
    for row in cells:
        _block(titles, row)


def _block(titles: Sequence[str], row: Sequence[str]) -> None:
    lines = Table.grid(padding=(0, 2, 0, 0))
    lines.add_column(style="bold", no_wrap=True)
    lines.add_column(overflow="fold")
    for title, cell in zip(titles, row, strict=True):
        if cell:
            lines.add_row(title.removesuffix("#"), cell)
    console.print(lines)
    console.print()


def when(time: Timestamp) -> str:
    """Returns a time in this machine's zone, to the second; empty where not set."""
    if not time.seconds:
        return ""
    return datetime.fromtimestamp(time.seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def sparkline(values: Sequence[float | None]) -> str:
    """Draws values as a line of bars; a gap where there is none.

    >>> sparkline([1.0, 2.0, None, 3.0])
    '▁▄ █'
    """
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, span = min(known), max(known) - min(known)
    scale = (len(_BARS) - 1) / span if span else 0.0
    return "".join(" " if value is None else _BARS[int((value - low) * scale)] for value in values)
