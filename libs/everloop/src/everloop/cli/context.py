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

__all__ = ["Commands", "JsonOption", "connected", "home_of"]

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
