"""`token`: lets somebody call."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer

from everloop.errors import EverloopError
from everloop_contracts.services import Service

__all__ = ["add_to"]

_LONGEST_NAME = 100


def token(
    name: Annotated[
        str, typer.Argument(help="Who will call; audit trails name it. No spaces.", metavar="NAME")
    ],
    services: Annotated[
        list[Service],
        typer.Option("--for", help="A service that it may call, again for more; default: all."),
    ] = [],  # noqa: B006 - typer's way to say "none given"
    file: Annotated[
        Path, typer.Option("--file", help="File of callers, made where there is none.")
    ] = Path("callers.yaml"),
) -> None:
    """Make a token, and add who has it to the file of those who may call.

    The token is printed once and kept nowhere; the file has its SHA-256. A service that is started with
    EVERLOOP_CALLERS_FILE=<file> answers nobody else, and sees within seconds that the file has changed. To take a token
    back, remove its entry.

    \b
    everloop token shop --for inference
    export EVERLOOP_TOKEN=$(everloop token "$USER")      everything, for this shell
    curl -H "authorization: Bearer $TOKEN" …             over HTTP; the same header over gRPC
    """  # noqa: D301 - the backspace keeps the lines apart
    if not name or len(name) > _LONGEST_NAME or any(map(str.isspace, name)):
        text = (
            f"'{name}' is no name: give one without spaces, of at most {_LONGEST_NAME} characters"
        )
        raise EverloopError("INVALID_NAME", text)
    if name in set(Service):
        raise EverloopError("INVALID_NAME", f"'{name}' is a service's name: give another")
    made = secrets.token_urlsafe(32)
    entry = {
        "name": name,
        "services": [service.value for service in services or Service],
        "sha256": hashlib.sha256(made.encode()).hexdigest(),
    }
    _add(file, entry)
    print(made)


def _add(file: Path, entry: dict[str, Any]) -> None:
    import yaml

    line = yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, width=1000)
    try:
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if yaml.safe_load(before) in (None, {"callers": None}, {"callers": []}):
            before = "callers:\n"
        after = f"{before.rstrip()}\n{line}"
        content = yaml.safe_load(after)
        if not isinstance(content, dict) or entry not in (content.get("callers") or ()):
            raise ValueError("it does not end with a list of 'callers'")
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(after, encoding="utf-8")
        draft.replace(file)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EverloopError("FILE_UNUSABLE", f"{file} is left as it is: {error}") from error


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel="Platform")(token)
