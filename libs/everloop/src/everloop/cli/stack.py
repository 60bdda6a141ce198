"""`up`, `down`, `status` and `demo`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.context import JsonOption, connected, home_of
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.addresses import Addresses
    from everloop.client import Everloop

__all__ = ["add_to"]

PANEL = "The stack"


@contextmanager
def _stack_installed(extra: str = "stack") -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise EverloopError(
            "NOT_INSTALLED",
            f"the embedded stack is not installed here (no module {error.name})",
            f"install it: `pip install 'everloop[{extra}]'`",
        ) from error


def up(
    ctx: typer.Context,
    parts: Annotated[
        list[str] | None, typer.Argument(help="Parts to start, or `infra`; default: all.")
    ] = None,
) -> None:
    """Start the stack and wait until all of it is healthy."""
    with _stack_installed():
        from everloop.stack import commands
    commands.up(parts, home_of(ctx))


def down(ctx: typer.Context) -> None:
    """Stop the stack; its data stay."""
    with _stack_installed():
        from everloop.stack import commands
    commands.down(home_of(ctx))


def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show what is up, and where each pipeline stands. Exit code 1 unless all is healthy."""
    from everloop.cli.output import console, print_json, table

    with connected(ctx, timeout=5.0) as everloop:
        parts = _parts(everloop.addresses)
        pipelines = [_pipeline(everloop, name) for name in _names(everloop)]
    healthy = all(part["state"] in ("healthy", "external") for part in parts)
    healthy = healthy and not any("error" in line for line in pipelines)
    if as_json:
        print_json({"parts": parts, "pipelines": pipelines})
        raise typer.Exit(0 if healthy else 1)
    colours = {"healthy": "green", "external": "green", "starting": "cyan", "failed": "red"}
    table(
        ("part", "state", "where", "memory#"),
        (
            (
                part["part"],
                f"[{colours.get(part['state'], 'yellow')}]{part['state']}[/]",
                part["endpoint"] if not part["detail"] else part["detail"],
                f"{part['memory_bytes'] / 2**20:.0f} MiB" if part["memory_bytes"] else "",
            )
            for part in parts
        ),
        empty="the parts are not of this machine: only what the services answer is shown",
    )
    console.print()
    table(
        ("pipeline", "dataset", "Production", "answers", "lag#", "last decision"),
        (
            (
                line["pipeline"],
                f"v{line['dataset']} ({line['rows']:,} rows)" if line["dataset"] else "none yet",
                f"v{line['production']}" if line["production"] else "none yet",
                f"v{line['serving']}" if line["serving"] else "nothing yet",
                f"{line['lag']:,}",
                line["decision"] or "none yet",
            )
            if "error" not in line
            else (line["pipeline"], f"[red]{line['error']}[/]", "", "", "", "")
            for line in pipelines
        ),
        empty="no pipeline yet: put a YAML file into the pipelines folder and start the stack again",
    )
    raise typer.Exit(0 if healthy else 1)


def _parts(addresses: Addresses) -> list[dict[str, Any]]:
    """Returns the state of every part where this machine runs them."""
    if addresses.home is None or find_spec("supervisor") is None or find_spec("psutil") is None:
        return []
    import dataclasses

    from everloop.stack import lifecycle

    return [dataclasses.asdict(line) for line in lifecycle.status(addresses.home)]


def _names(everloop: Everloop) -> list[str]:
    """Returns the pipelines: those with a file where the files are here, else those with a model."""
    from everloop_contracts.pipeline import PipelineError, load_pipelines

    if everloop.addresses.pipelines_dir:
        try:
            return sorted(load_pipelines(Path(everloop.addresses.pipelines_dir)))
        except PipelineError as error:
            raise EverloopError("BROKEN_PIPELINE", str(error), "repair the file") from error
    return sorted({version.model for version in everloop.models(limit=500)})


def _pipeline(everloop: Everloop, name: str) -> dict[str, Any]:
    """Describes one pipeline in one line; `error` is what kept a service from answering."""
    line: dict[str, Any] = {"pipeline": name}
    try:
        datasets = everloop.datasets(name, limit=1)
        production = everloop.production(name)
        decisions = everloop.decisions(name, limit=1)
        line["lag"] = everloop.stats(name).lag
        line["serving"] = everloop.served(name).version if production else None
    except EverloopError as error:
        return line | {"error": error.message}
    return line | {
        "dataset": datasets[0].version if datasets else None,
        "rows": datasets[0].rows if datasets else 0,
        "production": production[0].version if production else None,
        "decision": f"{decisions[0].action}: {decisions[0].reason}" if decisions else "",
    }


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up at the end.")] = False,
    small: Annotated[bool, typer.Option("--small", help="A few days of each month only.")] = False,
) -> None:
    """Send a year of flights once round the loop (about six minutes)."""
    options = [*(["--keep"] if keep else []), *(["--slice", "small"] if small else [])]
    # In this process' place: the demo owns its signals, threads and exit code.
    os.execv(sys.executable, [sys.executable, "-m", "everloop.demo", *options])


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (up, down, status, demo):
        app.command(rich_help_panel=PANEL)(command)
