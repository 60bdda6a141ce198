"""`reproduce`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Annotated

import typer

from everloop.cli.context import JsonOption, connected
from everloop.cli.models import PANEL
from everloop.errors import EverloopError

__all__ = ["add_to"]

_RUN = re.compile(r"^[0-9a-f]{32}$")


def reproduce(
    ctx: typer.Context,
    what: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL[@VERSION]",
            help="An MLflow run, or a model: its version in Production unless one is named.",
        ),
    ],
    trials: Annotated[
        bool, typer.Option(help="Fit every trial of the search again, not only the winner.")
    ] = True,
    tolerance: Annotated[
        float, typer.Option(help="By how much a metric may differ; 0 asks for equal bits.", min=0)
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Train a model again from what was recorded with it, and compare winner and metrics.

    Exit code 0 if the same came out, 1 if not, 3 if the run or its data cannot be read. It trains here, with the code
    that is installed: the trainer has to be, and differences in code and packages are shown.

    \b
    everloop reproduce flight-delays
    everloop reproduce flight-delays@3 --no-trials
    """  # noqa: D301 - the backspace keeps the lines apart
    if find_spec("everloop_trainer") is None:
        raise EverloopError(
            "TRAINER_NOT_INSTALLED",
            "the trainer is not installed here",
            "install everloop-trainer at the version that made the model",
        )
    with connected(ctx) as everloop:
        places = everloop.addresses
        if _RUN.match(what):
            run_id = what
        else:
            name, _, number = what.partition("@")
            if number and not number.isdecimal():
                raise EverloopError("INVALID_VERSION", f"'{number}' is no version", "say MODEL@3")
            run_id = everloop.model(name, int(number or 0)).run_id
    environment = dict(os.environ)
    if places.home:
        from everloop.stack.endpoints import load
        from everloop.stack.errors import StackError

        try:
            environment |= load(places.home).environment()
        except StackError as error:
            raise EverloopError("STACK_NOT_FOUND", str(error), "`everloop up` starts it") from error
    command = [sys.executable, "-m", "everloop_trainer", "reproduce", run_id]
    command += ["--tolerance", str(tolerance)]
    command += [] if trials else ["--no-trials"]
    command += ["--json"] if as_json else []
    raise typer.Exit(subprocess.run(command, env=environment).returncode)


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=PANEL)(reproduce)
