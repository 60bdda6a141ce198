"""What every command shares: where the stack is, and errors as one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
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
    "ListUnlessTold",
    "Pipelines",
    "connected",
    "home_of",
    "pipelines_of",
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


@dataclass(frozen=True)
class Pipelines:
    """The pipelines that there are.

    Attributes:
        names: Those with a file where the files are here, else those with a model.
        problems: What is wrong, by the name of a file that cannot be used; its pipeline may run nevertheless.
    """

    names: list[str]
    problems: dict[str, str] = field(default_factory=dict)


def pipelines_of(everloop: Everloop) -> Pipelines:
    """Finds the pipelines."""
    from everloop_contracts.pipeline import PipelineError, load_pipeline

    if not everloop.addresses.pipelines_dir:
        return Pipelines(sorted({version.model for version in everloop.models(limit=500)}))
    names: set[str] = set()
    problems: dict[str, str] = {}
    for path in sorted(Path(everloop.addresses.pipelines_dir).glob("*.yaml")):
        try:
            names.add(load_pipeline(path).name)
        except PipelineError as error:
            problems[path.stem] = str(error)
    return Pipelines(sorted(names), problems)


def require_known(everloop: Everloop, name: str) -> None:
    """Returns for the name of a pipeline; an empty list says nothing about a name that is misspelt.

    Raises:
        EverloopError: reason PIPELINE_NOT_FOUND.
    """
    names = pipelines_of(everloop).names
    if name not in names:
        known = ", ".join(names) or "none yet"
        raise EverloopError("PIPELINE_NOT_FOUND", f"there is no '{name}'; there are: {known}")


class ListUnlessTold(TyperGroup):
    """A group that lists where no command is named: `trainings PIPELINE` is `trainings list PIPELINE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts `list` in front."""
        told = args and (args[0] in self.commands or args[0] in ctx.help_option_names)
        parsed: list[str] = super().parse_args(ctx, args if told else ["list", *args])
        return parsed
