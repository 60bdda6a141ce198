"""`python -m everloop.demo`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from enum import StrEnum
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from types import FrameType
from typing import IO, Annotated

import typer
from rich.markup import escape

from everloop import stack
from everloop.addresses import repository_root
from everloop.demo.flights import MissingData
from everloop.demo.results import RESULTS
from everloop.demo.run import Run, StepFailed
from everloop.demo.screen import Screen
from everloop.demo.slices import SLICES, Slice
from everloop.demo.steps import STEPS, Step, log_of
from everloop.errors import EverloopError
from everloop.stack.errors import last_lines
from everloop_contracts.pipeline import PipelineError

SliceName = StrEnum("SliceName", list(SLICES))  # type: ignore[misc]

LOG_LINES = 8


def main(
    slice_: Annotated[SliceName, typer.Option("--slice", help="How much of the year.")] = SliceName[
        "year"
    ],
    rate: Annotated[
        float | None, typer.Option(min=1, help="Flights per second that the client asks about.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the stack up at the end.")] = False,
) -> None:
    """Send a year of flights once round the whole loop: push, train, serve, watch, retrain, swap.

    Everything it makes is in `.everloop/demo`, which is wiped at the start, but for the last results;
    your own stack is not touched.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    home = stack.default_home() / "demo"
    part = SLICES[slice_.value]
    screen = Screen()
    lock = _lock(home)
    if lock is None:
        print(f"another demo runs in {home}", file=sys.stderr)
        raise typer.Exit(1)
    with lock:
        code = _run(home, screen, part, rate or part.rate, keep)
    raise typer.Exit(code)


def _run(home: Path, screen: Screen, part: Slice, rate: float, keep: bool) -> int:
    run: Run | None = None
    succeeded = False
    try:
        with screen:
            screen.line(f"[bold]Everloop demo[/]  everything is in {home}")
            stack.down(home)  # what an earlier demo left running
            _wipe(home)
            run = Run(home, _pipelines(), part, rate, screen)
            for number, step in enumerate(STEPS, start=1):
                screen.step(number, len(STEPS), step.title)
                if not _did(run, step):
                    return 1
        succeeded = True
        return 0
    except KeyboardInterrupt:
        screen.line("\n[yellow]interrupted[/]: everything is being stopped")
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if run is not None:
            run.close()
        if keep and succeeded:
            screen.line(f"\nThe stack is up. Stop it: everloop --home {home} down")
        else:
            stack.down(home)
            if not succeeded:
                screen.line(f"\nIts data are kept. To look into them: everloop --home {home} up")


def _wipe(home: Path) -> None:
    """Removes what an earlier demo left, but for its results: they stay until this one has its own."""
    home.mkdir(parents=True, exist_ok=True)
    for entry in home.iterdir():
        if entry.name in RESULTS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _pipelines() -> Path:
    return Path(os.environ.get("EVERLOOP_PIPELINES_DIR") or repository_root() / "pipelines")


def _did(run: Run, step: Step) -> bool:
    """Runs a step; False after telling why it failed."""
    try:
        step.run(run)
        return True
    except stack.PartFailed as error:
        _tell(run, step, f"{error.part}: {error.reason}", run.home / "logs" / f"{error.part}.log")
    except (StepFailed, EverloopError) as error:
        part = getattr(error, "part", None) or step.part
        _tell(run, step, str(error), log_of(run.home, part) if part else None)
    except (stack.StackError, MissingData, PipelineError) as error:
        _tell(run, step, str(error), None)
    except Exception as error:
        run.screen.console.print_exception()
        _tell(
            run,
            step,
            f"{type(error).__name__}: {error}",
            log_of(run.home, step.part) if step.part else None,
        )
    return False


def _tell(run: Run, step: Step, why: str, log: Path | None) -> None:
    run.screen.line(f"\n[bold red]failed:[/] {escape(step.title)}")
    run.screen.line(f"  {escape(why)}")
    if log is None:
        return
    run.screen.line(f"  log: {log}")
    for line in last_lines(log, LOG_LINES):
        run.screen.line(f"    [dim]{escape(line)}[/]")


def _lock(home: Path) -> IO[str] | None:
    """Holds the home against a second demo; None where one runs."""
    home.parent.mkdir(parents=True, exist_ok=True)
    file = (home.parent / "demo.lock").open("w")
    try:
        flock(file, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(main)
