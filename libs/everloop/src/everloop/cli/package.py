"""`package`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from everloop.cli.context import connected, say
from everloop.cli.models import PANEL
from everloop.errors import EverloopError
from everloop.package import Target, write_package

__all__ = ["add_to"]


def package(
    ctx: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL[@VERSION]", help="Default: the version in Production.")
    ],
    to: Annotated[
        Path | None, typer.Option(help="Folder to make; default MODEL-VERSION.", show_default=False)
    ] = None,
    target: Annotated[
        Target, typer.Option("--for", help="What is to run it: a container engine, or AWS Lambda.")
    ] = Target.CONTAINER,
    build: Annotated[
        bool, typer.Option(help="Build the image too, where there is a container engine.")
    ] = True,
) -> None:
    """Make an image of one model that serves it without the platform: on Docker, EC2, ECS, Lambda.

    \b
    everloop package flight-delays
    everloop package flight-delays@3 --to dist/flight-delays --no-build
    everloop package flight-delays --for lambda
    """  # noqa: D301 - the backspace keeps the lines apart
    name, _, number = model.partition("@")
    if number and not number.isdecimal():
        raise EverloopError("INVALID_VERSION", f"'{number}' is no version", "say MODEL@NUMBER")
    with connected(ctx) as everloop:
        version = everloop.model(name, int(number or 0))
        folder = to or Path(f"{version.model}-{version.version}")
        pipelines = Path(everloop.addresses.pipelines_dir)
        write_package(version, everloop.download, pipelines, folder, target)
    tag = f"{version.model}:{version.version}"
    command = ["docker", "build", "--tag", tag, str(folder)]
    say(f"{version.model} v{version.version} is in {folder}")
    if not build or not shutil.which("docker"):
        say(f"its image: {' '.join(command)}")
    elif subprocess.run(command).returncode:
        raise EverloopError("IMAGE_NOT_BUILT", f"docker could not build {folder}")
    elif target is Target.LAMBDA:
        say(f"push {tag} to ECR; docs/operations.md says how it becomes a function")
    else:
        say(f"serve it: docker run -p 8080:8080 -p 8081:8081 {tag}")


def add_to(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(rich_help_panel=PANEL)(package)
