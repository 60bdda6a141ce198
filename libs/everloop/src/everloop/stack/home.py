"""Where a stack keeps its things."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path

from everloop.addresses import repository_root
from everloop.stack.errors import StackError

__all__ = ["Home", "default_home", "locked"]


def default_home() -> Path:
    """Return `EVERLOOP_HOME`, or `.everloop` in the checkout."""
    return Path(os.environ.get("EVERLOOP_HOME") or repository_root() / ".everloop")


@dataclass(frozen=True)
class Home:
    """The folders of one stack.

    Attributes:
        root: The home itself, absolute.
        cache: Downloads, shared by all homes of a checkout (`EVERLOOP_CACHE`).
    """

    root: Path
    cache: Path

    @classmethod
    def at(cls, root: Path) -> Home:
        """Describe the home at `root`; nothing is created."""
        cache = os.environ.get("EVERLOOP_CACHE") or repository_root() / ".everloop" / "cache"
        return cls(root=root.expanduser().resolve(), cache=Path(cache).expanduser().resolve())

    @property
    def run(self) -> Path:
        """Sockets and Ray's session: a short path, because a Unix socket's may have 107 bytes."""
        name = hashlib.sha256(str(self.root).encode()).hexdigest()[:10]
        return Path(tempfile.gettempdir()) / f"everloop-{os.getuid()}-{name}"

    @property
    def endpoints(self) -> Path:
        """Where the command line and the demo find the stack."""
        return self.root / "stack.json"

    @property
    def secrets(self) -> Path:
        """Generated credentials, readable by the owner only."""
        return self.root / "secrets"

    def data(self, part: str) -> Path:
        """Return the data folder of a part."""
        return self.root / "data" / part

    def log(self, part: str) -> Path:
        """Return the log of a part."""
        return self.root / "logs" / f"{part}.log"

    def create(self) -> None:
        """Make the folders. Safe to repeat.

        Raises:
            StackError: A folder cannot be made, or the run folder belongs to somebody else.
        """
        for folder in (self.root, self.root / "data", self.root / "logs", self.cache):
            _make(folder)
        for folder in (self.secrets, self.run):
            folder.mkdir(mode=0o700, exist_ok=True)
        # The temporary folder is everybody's: a run folder planted there could redirect our sockets.
        found = self.run.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StackError(f"{self.run} is not a folder of this user: remove it")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"{folder} cannot be made a folder: {error.strerror}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` against other processes and threads of this machine.

    Raises:
        StackError: Its folder cannot be made.
    """
    _make(path.parent)
    with path.open("w") as file:
        flock(file, LOCK_EX)
        yield
