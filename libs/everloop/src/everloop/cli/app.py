"""The commands of `everloop`, put together."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli import (
    audit,
    data,
    dead_letters,
    features,
    models,
    package,
    predict,
    reproduce,
    rollouts,
    stack,
    token,
    trainings,
    watch,
)
from everloop.cli.context import Commands

__all__ = ["app"]

_EXAMPLES = """A closed loop for tabular models: push data, predict, and let drift retrain the model.

[bold]A first walk[/]

\b
everloop up                                   start everything here
everloop push flights.csv -p flight-delays    data in, bad records listed
everloop dead-letters list flight-delays      what was rejected, and why
everloop cut flight-delays                    a dataset version
everloop train flight-delays                  a model from all data so far
everloop models flight-delays                 what was trained, what serves
everloop predict flight-delays --file x.jsonl ask it
everloop reproduce flight-delays              train it again, compare
everloop rollouts flight-delays               how a version on trial does
everloop audit verify                         whether the record of it all was changed
everloop package flight-delays                an image of the model alone
everloop drift flight-delays                  how inputs and quality move
everloop trace PREDICTION_ID                  from an answer back to its data
everloop down                                 stop; the data stay
"""

app = typer.Typer(
    name="everloop",
    cls=Commands,
    help=_EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"everloop {version('everloop')}")
        raise typer.Exit()


@app.callback()
def _options(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            help="Home of the stack; default EVERLOOP_HOME, else the nearest .everloop upwards, else the checkout's.",
            show_default=False,
        ),
    ] = None,
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Takes what holds for every command; they read it from the context."""


for room in (
    stack,
    data,
    dead_letters,
    predict,
    models,
    features,
    trainings,
    reproduce,
    package,
    rollouts,
    audit,
    token,
    watch,
):
    room.add_to(app)
