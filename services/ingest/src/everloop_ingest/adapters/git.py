"""Git for the data repository: the command itself, independent of the user's own configuration."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import IO

__all__ = ["Git", "GitError"]

_NAME = "Everloop"
_EMAIL = "everloop@localhost"
SECONDS = 60.0
"""How long one command may take."""


class GitError(Exception):
    """What git did not do, and why."""


class Git:
    """One repository that only this service writes to.

    Every method raises `GitError` where git fails, with its own words, or does not end in time.
    """

    def __init__(self, root: Path) -> None:
        """Takes the work tree; nothing is made yet."""
        self._root = root
        self._threads = threading.Lock()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One writer at a time, in this process and any other; the folder of the work tree is there."""
        with self._threads, self._root.with_name(f"{self._root.name}.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            try:
                yield
            finally:
                flock(lock, LOCK_UN)

    def init(self, *, bare: bool = False) -> None:
        """Makes the repository where there is none, and clears the locks that a killed git left.

        Only call this while no other process writes to it.
        """
        folder = self._root if bare else self._root / ".git"
        if folder.is_dir():
            for lock in folder.rglob("*.lock"):
                lock.unlink()
        kind = ("--bare",) if bare else ()
        self._run("init", "--quiet", "--initial-branch=main", *kind)
        for name, value in {
            "user.name": _NAME,
            "user.email": _EMAIL,
            "commit.gpgsign": "false",
            "tag.gpgsign": "false",
            "core.hooksPath": "/dev/null",
            "core.autocrlf": "false",
            "gc.auto": "0",
        }.items():
            self._run("config", name, value)

    def commit(self, message: str, paths: list[str], time: datetime | None = None) -> str:
        """Commits paths as they are now, if they changed; returns the commit at the tip."""
        self._run("add", "--force", "--", *paths)
        if self._code("diff", "--cached", "--quiet", "--", *paths):
            dates = {}
            if time is not None:
                dates = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), time.isoformat())
            self._run(
                "commit", "--quiet", "--no-verify", "-m", message, "--", *paths, environment=dates
            )
        return self._run("rev-parse", "HEAD")

    def commit_tree(self, message: str, files: Mapping[str, str], time: datetime) -> str:
        """Commits exactly these files on `main`, by path, without a work tree; returns the commit."""
        tip = "refs/heads/main"
        lines = [
            f"commit {tip}",
            f"committer {_NAME} <{_EMAIL}> {int(time.timestamp())} +0000",
            _data(message),
            *([] if self._code("rev-parse", "--quiet", "--verify", tip) else [f"from {tip}^0"]),
            "deleteall",
        ]
        for path, content in files.items():
            lines += [f"M 100644 inline {path}", _data(content)]
        self._run("fast-import", "--quiet", source="\n".join([*lines, ""]))
        return self._run("rev-parse", tip)

    def has_lfs(self) -> bool:
        """Whether the command `git-lfs` is there."""
        return not self._code("lfs", "version")

    def keep_by_lfs(self, file: Path) -> str:
        """Stores the content of a file in `lfs/objects`; returns what Git LFS has git keep in its place."""
        with file.open("rb") as stream:
            return self._run("lfs", "clean", source=stream)

    def tracks(self, path: str) -> bool:
        """Whether the index holds a path."""
        return not self._code("ls-files", "--error-unmatch", "--", path)

    def tag(self, name: str, commit: str) -> None:
        """Puts a tag on a commit, away from another where it was."""
        self._run("tag", "--force", name, commit)

    def tagged(self, name: str) -> str | None:
        """The commit that a tag points to."""
        if self._code("rev-parse", "--quiet", "--verify", f"refs/tags/{name}"):
            return None
        return self._run("rev-parse", f"refs/tags/{name}^{{commit}}")

    def show(self, commit: str, path: str) -> str | None:
        """A file at a commit; None where it has none."""
        if self._code("cat-file", "-e", f"{commit}:{path}"):
            return None
        return self._run("show", f"{commit}:{path}")

    def _run(
        self,
        *arguments: str,
        environment: dict[str, str] | None = None,
        source: str | IO[bytes] | None = None,
    ) -> str:
        done = self._git(arguments, environment, source)
        if done.returncode:
            raise GitError(f"git {arguments[0]}: {done.stderr.strip()}")
        return done.stdout.strip()

    def _code(self, *arguments: str) -> int:
        return self._git(arguments).returncode

    def _git(
        self,
        arguments: tuple[str, ...],
        environment: dict[str, str] | None = None,
        source: str | IO[bytes] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        try:
            return subprocess.run(
                ["git", "-c", f"safe.directory={self._root}", *arguments],
                cwd=self._root,
                env=clean
                | {
                    "GIT_CONFIG_GLOBAL": os.devnull,
                    "GIT_CONFIG_NOSYSTEM": "1",
                    "GIT_TERMINAL_PROMPT": "0",
                }
                | (environment or {}),
                capture_output=True,
                input=source if isinstance(source, str) else None,
                stdin=None if isinstance(source, str) else source,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError) as error:
            raise GitError(f"git {arguments[0]}: {error}") from error


def _data(text: str) -> str:
    """A text as `git fast-import` reads it."""
    return f"data {len(text.encode())}\n{text}"
