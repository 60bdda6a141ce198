"""`up`, `down` and `status` for the command line; `everloop.cli` mounts them."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from everloop.stack import health, lifecycle, ports
from everloop.stack.errors import StackError
from everloop.stack.home import default_home
from everloop.stack.lifecycle import Event
from everloop.stack.parts import INFRA

__all__ = ["app", "down", "print_event", "status", "up"]

app = typer.Typer(help="The embedded stack.", no_args_is_help=True, add_completion=False)
console = Console(highlight=False)
errors = Console(highlight=False, stderr=True)

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home", help="Where the stack keeps everything; default EVERLOOP_HOME or .everloop."
    ),
]

_COLOURS = {
    "healthy": "green",
    "external": "green",
    "preparing": "cyan",
    "starting": "cyan",
    "unhealthy": "yellow",
    "failed": "red",
}


def print_event(event: Event) -> None:
    """Print one step of a start or stop on one line."""
    colour = _COLOURS.get(event.phase, "dim")
    time = f"{event.elapsed_seconds:6.1f}s"
    console.print(
        f"[dim]{time}[/]  {event.part:<17} [{colour}]{event.phase:<9}[/]  {event.text}",
        soft_wrap=True,
    )


@app.command()
def up(
    parts: Annotated[
        list[str] | None, typer.Argument(help="Parts to start, or `infra`; default: all.")
    ] = None,
    home: HomeOption = None,
) -> None:
    """Start the stack and wait until every part of it is healthy."""
    only = [name for part in parts or () for name in (INFRA if part == "infra" else (part,))]
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        there = lifecycle.up(home, print_event, only=only or None)
    except KeyboardInterrupt:
        errors.print("interrupted: what was started has been stopped")
        raise typer.Exit(130) from None
    except StackError as error:
        errors.print(f"[red]failed[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    if instead := ports.replaced(there.ports):
        console.print("[yellow]ports that were taken, and what is used instead:[/]")
        for name in ports.PUBLIC:
            if name in instead:
                default, port = instead[name]
                console.print(f"  {name:<15} {default:>5} → {port}")
        if inner := instead.keys() - set(ports.PUBLIC):
            console.print(f"  and {len(inner)} that the parts use among themselves")
    console.print(f"up. Addresses and keys: {Path(there.home) / 'stack.json'}", soft_wrap=True)


@app.command()
def down(home: HomeOption = None) -> None:
    """Stop the stack; its data stay."""
    try:
        lifecycle.down(home, print_event)
    except StackError as error:
        errors.print(f"[red]failed[/] {error}", soft_wrap=True)
        raise typer.Exit(1) from None
    console.print("down")


@app.command()
def status(home: HomeOption = None) -> None:
    """Show every part: state, endpoint, uptime, memory. Exit code 1 unless all are healthy."""
    found = health.status(home)
    if not found:
        errors.print(f"no stack was started in {home or default_home()}", soft_wrap=True)
        raise typer.Exit(1)
    table = Table(box=None, pad_edge=False)
    for title in ("part", "state", "endpoint", "pid"):
        table.add_column(title)
    for title in ("uptime", "memory"):
        table.add_column(title, justify="right")
    for line in found:
        table.add_row(
            line.part,
            f"[{_COLOURS.get(line.state, 'dim')}]{line.state}[/]",
            line.endpoint,
            str(line.pid or ""),
            "" if line.uptime_seconds is None else _duration(line.uptime_seconds),
            f"{line.memory_bytes / 2**20:.0f} MiB" if line.memory_bytes else "",
        )
    console.print(table)
    for line in found:
        if line.detail:
            console.print(f"{line.part}: {line.detail}", soft_wrap=True)
    console.print(f"memory in all: {sum(line.memory_bytes for line in found) / 2**20:.0f} MiB")
    if any(line.state not in ("healthy", "external") for line in found):
        raise typer.Exit(1)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
