"""Log files of replicas: one for each process, since processes cannot rotate a file that they share."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from logging.handlers import RotatingFileHandler
from pathlib import Path

__all__ = ["OLD_FILES", "log_to_file"]

log = logging.getLogger(__name__)

MAX_BYTES = 10 * 1024 * 1024
"""Size at which a file is rotated; a process has three."""
OLD_FILES = 8
"""Files of processes that are gone that are kept for each name."""


def log_to_file(folder: Path, name: str) -> None:
    """Writes the root logger to `folder/<name>-<process id>.log`, and removes what is old under that name.

    Ray keeps a worker's own output where nobody looks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _prune(folder.glob(f"{name}-*.log*"), name)
    root = logging.getLogger()
    path = folder / f"{name}-{os.getpid()}.log"
    handler = RotatingFileHandler(path, maxBytes=MAX_BYTES, backupCount=2)
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)


def _prune(paths: Iterable[Path], name: str) -> None:
    """Removes all but the youngest files of processes that are gone; others may do so at the same time."""
    gone: list[tuple[float, Path]] = []
    for path in paths:
        process = path.name.removeprefix(f"{name}-").partition(".")[0]
        if not process.isdecimal() or _lives(int(process)):
            continue  # a pool's name may begin with this one
        try:
            gone.append((path.stat().st_mtime, path))
        except FileNotFoundError:
            continue
    for _, path in sorted(gone)[:-OLD_FILES]:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("an old log stays: %s", error)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
