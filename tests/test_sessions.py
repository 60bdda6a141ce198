"""A test session that is told to end leaves no process behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from everloop.stack import processes

ROOT = Path(__file__).parents[1]

SESSION = """
import os, subprocess, sys, time
import pytest

@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    marked = {**os.environ, "EVERLOOP_STACK": str(home)}
    script = "import time; time.sleep(600)"
    tidy = subprocess.Popen([sys.executable, "-c", script], env=marked)
    subprocess.Popen([sys.executable, "-c", script], env=marked, start_new_session=True)
    yield home
    tidy.kill()
    tidy.wait()
    (home / "taken-down").touch()

def test_waits(stack):
    (stack / "ready").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_session_that_is_terminated_takes_its_stack_down(tmp_path: Path, workers: str) -> None:
    (tmp_path / "test_session.py").write_text(SESSION)
    base = tmp_path / "base"
    options = ["-p", "conftest", "-n", workers, "--basetemp", base, "-c", os.devnull]
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (ready := list(base.rglob("ready"))):
        assert session.poll() is None, session.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    home = ready[0].parent
    assert len(processes.marked(home)) == 2
    session.send_signal(signal.SIGTERM)
    output, _ = session.communicate(timeout=60)
    assert session.returncode == pytest.ExitCode.INTERRUPTED, output
    # A worker that needs more than its ten seconds, as on a busy machine, is ended, and its stack by the session.
    assert workers == "1" or (home / "taken-down").exists()
    assert processes.marked(home) == []
