"""Every process writes a log of its own, and old ones do not pile up."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from everloop_inference.placement.log_files import OLD_FILES, log_to_file


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    logger = logging.getLogger()
    before = list(logger.handlers)
    if not before:
        logger.addHandler(logging.StreamHandler())
    yield logger
    for handler in logger.handlers[:]:
        if handler not in before:
            logger.removeHandler(handler)
            handler.close()


def dead_process() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_a_process_writes_to_a_file_of_its_own(root: logging.Logger, tmp_path: Path) -> None:
    log_to_file(tmp_path / "logs", "replica")
    root.error("something is said")
    path = tmp_path / "logs" / f"replica-{os.getpid()}.log"
    assert "something is said" in path.read_text()


def test_files_of_processes_that_are_gone_are_bounded_and_others_stay(
    root: logging.Logger, tmp_path: Path
) -> None:
    gone = dead_process()
    old = [tmp_path / f"replica-{gone}.log", tmp_path / f"replica-{gone}.log.1"]
    old += [tmp_path / f"replica-{gone}.log.{number}" for number in range(2, OLD_FILES + 3)]
    for age, path in enumerate(old):
        path.write_text("old")
        os.utime(path, (1e9 - age, 1e9 - age))
    others = [
        tmp_path / f"replica-{os.getppid()}.log",
        tmp_path / f"pool-replica-{gone}.log",
        tmp_path / "replica-of-mine.log",
    ]
    for path in others:
        path.write_text("of somebody else")
        os.utime(path, (1, 1))
    log_to_file(tmp_path, "replica")
    assert [path for path in old if path.exists()] == old[:OLD_FILES]
    assert all(path.exists() for path in others)
