"""What the demo shows while it runs: live bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

__all__ = ["Bar", "Screen"]

PLAIN_SECONDS = 10.0
LOG_COLUMNS = 160


class Bar:
    """Progress of one long piece of work."""

    def __init__(self, screen: Screen, title: str, total: int) -> None:
        self._screen = screen
        self._title = title
        self._total = total
        self._shown = time.monotonic()
        self._task = screen.progress.add_task(title, total=total, note="")

    def to(self, done: int, note: str = "", total: int | None = None) -> None:
        """Moves the bar; `note` says in a few words how it goes."""
        self._total = total or self._total
        self._screen.progress.update(
            self._task, completed=done, total=self._total, note=escape(note)
        )
        if not self._screen.live and time.monotonic() - self._shown >= PLAIN_SECONDS:
            self._shown = time.monotonic()
            self._screen.line(
                f"  {escape(self._title)}: {done:,} of {self._total:,} {escape(note)}"
            )

    def close(self) -> None:
        """Takes the bar away."""
        self._screen.progress.remove_task(self._task)


class Screen:
    """Prints lines and bars; may be used from several threads. Text is rich's markup."""

    def __init__(self, console: Console | None = None) -> None:
        # A log has no edge to wrap at, but rich takes it for 80 columns wide.
        width = None if sys.stdout.isatty() else LOG_COLUMNS
        self.console = console or Console(highlight=False, width=width)
        self.live = self.console.is_terminal
        self._began = time.monotonic()
        columns: tuple[Any, ...] = (
            TextColumn("[cyan]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self.progress = Progress(
            *columns, console=self.console, transient=True, disable=not self.live
        )

    def __enter__(self) -> Screen:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began

    def line(self, text: str = "") -> None:
        """Prints one line."""
        self.console.print(text, soft_wrap=True)

    def step(self, number: int, total: int, title: str) -> None:
        """Prints the heading of a step."""
        self.line(f"\n[bold]\\[{number}/{total}] {escape(title)}[/]  [dim]{self.seconds:.0f} s[/]")

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        """Shows a bar while the block runs."""
        bar = Bar(self, title, total)
        try:
            yield bar
        finally:
            bar.close()
