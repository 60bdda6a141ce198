"""Runs the demo's small slice as a user would: a process of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.everloop_runtime.tests.collector import Sent
from readme_run import Outcome, Shown

DEADLINE_SECONDS = 720.0


@dataclass(frozen=True)
class Run:
    """What a run left.

    Attributes:
        root: its folder.
        killed: the parts that were killed in it, in this order.
        summary: its summary.
        spans: what its services sent to a collector of traces while it ran.
        readme: what came of everything that README.md shows, tried on its stack before that was stopped.
        received: messages that ingest had settled after that.
        series: what the panels of the dashboards ask, to how many series it returned; empty without Prometheus.
        package: what `everloop package` made of the version in Production.
        golden: scores that the platform gave the golden rows of that version.
        notebooks: what came of each notebook, run last on its stack.
    """

    root: Path
    killed: Sequence[str]
    summary: dict[str, Any]
    spans: Sequence[Sent]
    readme: Mapping[Shown, Outcome]
    received: int
    series: Mapping[str, int]
    package: Path
    golden: list[float]
    notebooks: Mapping[str, Outcome]


def run_small(
    root: Path,
    watch: Callable[[Path], None] = lambda home: None,
    *,
    keep: bool = False,
    program: str = "everloop.demo",
    within_seconds: float = DEADLINE_SECONDS,
    **variables: str,
) -> dict[str, Any]:
    """Runs the small slice to its end and returns its summary.

    Args:
        root: an empty folder; the demo's home is `<root>/demo`.
        watch: called again and again with the home while the demo runs.
        keep: leave the stack up; whoever asks for it stops it.
        program: the module to run.
        within_seconds: when it is interrupted.
        variables: more of its environment.

    Raises:
        AssertionError: the demo failed; the message holds the end of its output.
    """
    output = root / "output.txt"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", program, "--slice", "small", *["--keep"] * keep],
            env={**os.environ, "EVERLOOP_HOME": str(root), **variables},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            deadline = time.monotonic() + within_seconds
            while process.poll() is None and time.monotonic() < deadline:
                watch(root / "demo")
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(timeout=120)
    told = "\n".join(output.read_text(errors="replace").splitlines()[-60:])
    assert process.returncode == 0, f"the demo ended with {process.returncode}:\n{told}"
    summary: dict[str, Any] = json.loads((root / "demo" / "summary.json").read_text())
    return summary


def leftovers(root: Path) -> list[int]:
    """Processes that still belong to a home below `root`."""
    marker = f"EVERLOOP_HOME={root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue  # gone, or not ours to look at
    return found
