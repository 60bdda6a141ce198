"""What every command shares: where the stack is, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from everloop.errors import EverloopError

if TYPE_CHECKING:
    from everloop.client import Everloop

__all__ = [
    "Commands",
    "JsonOption",
    "connected",
    "home_of",
    "pipeline_names",
    "require_known",
    "say",
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


class Commands(TyperGroup):
    """The group of all commands: what fails is one line on standard error, what to do, and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command."""
        try:
            return super().invoke(ctx)
        except EverloopError as error:
            say(f"error: {error.message} [{error.reason}]")
            if error.advice:
                say(f"  {error.advice}")
        except KeyboardInterrupt:
            say("interrupted")
            ctx.exit(130)
        ctx.exit(1)


def say(text: str) -> None:
    """Prints to standard error."""
    print(text, file=sys.stderr)


def home_of(ctx: typer.Context) -> Path | None:
    """Returns what `--home` said."""
    home: Path | None = ctx.find_root().params.get("home")
    return home


@contextmanager
def connected(ctx: typer.Context, timeout: float = 30.0) -> Iterator[Everloop]:
    """Connects to the stack that the command line names."""
    from everloop.client import Everloop

    with Everloop.connect(home_of(ctx), timeout=timeout) as everloop:
        yield everloop


def pipeline_names(everloop: Everloop) -> list[str]:
    """Returns the pipelines: those with a file where the files are here, else those with a model.

    Raises:
        EverloopError: reason BROKEN_PIPELINE.
    """
    from everloop_contracts.pipeline import PipelineError, load_pipelines

    if everloop.addresses.pipelines_dir:
        try:
            return sorted(load_pipelines(Path(everloop.addresses.pipelines_dir)))
        except PipelineError as error:
            raise EverloopError("BROKEN_PIPELINE", str(error), "repair the file") from error
    return sorted({version.model for version in everloop.models(limit=500)})


def require_known(everloop: Everloop, name: str) -> None:
    """Returns for the name of a pipeline; an empty list says nothing about a name that is misspelt.

    Raises:
        EverloopError: reason PIPELINE_NOT_FOUND.
    """
    names = pipeline_names(everloop)
    if name not in names:
        known = ", ".join(names) or "none yet"
        raise EverloopError("PIPELINE_NOT_FOUND", f"there is no '{name}'; there are: {known}")
