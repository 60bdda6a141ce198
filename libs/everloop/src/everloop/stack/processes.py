"""The processes of a stack, found by the mark that all of them inherit, whoever their parent is by now."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

__all__ = ["PART_MARK", "STACK_MARK", "kill_all", "marked", "memory_by_part", "part_of"]

STACK_MARK = "EVERLOOP_STACK"
"""Set by the stack alone, to its home; a user may well have EVERLOOP_HOME in a shell that must survive."""

PART_MARK = "EVERLOOP_PART"


def marked(home: str | Path, part: str | None = None) -> list[psutil.Process]:
    """Return the living processes of the stack at `home`, or of one part; never this process or its ancestors."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        environment = _environment(process)
        if environment.get(STACK_MARK) != str(home):
            continue
        if part is None or environment.get(PART_MARK) == part:
            found.append(process)
    return found


def kill_all(processes: Iterable[psutil.Process], patience_seconds: float = 5) -> None:
    """Kill processes and all their descendants, and wait until they are gone."""
    doomed: set[psutil.Process] = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            doomed.update([process, *process.children(recursive=True)])
    doomed.discard(psutil.Process())
    for process in doomed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(doomed, timeout=patience_seconds)


def memory_by_part(home: str | Path) -> dict[str, int]:
    """Return the memory of each part in bytes: the proportional set sizes of its processes.

    Where the system has no such figure, what the processes share is left out.
    """
    total: dict[str, int] = {}
    for process in marked(home):
        part = part_of(process)
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total[part] = total.get(part, 0) + getattr(memory, "pss", memory.uss)
    return total


def part_of(process: psutil.Process) -> str:
    """Return the part that a process of a stack belongs to."""
    return _environment(process).get(PART_MARK, "supervisord")


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return {}
        return process.environ()
    except (psutil.Error, OSError):
        return {}
