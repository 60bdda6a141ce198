"""The files of versions on this machine's disk, so that MLflow gives them once."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["ArtifactCache"]


class ArtifactCache:
    """Folders by key, as many as fit; those that nobody asked for longest go first."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """Takes its folder, which is its own, and the bytes that it may hold."""
        self.most_bytes = most_bytes
        self._kept = folder / "kept"
        self._incoming = folder / "incoming"
        self._lock = threading.Lock()
        # What a process before this one did not finish.
        shutil.rmtree(self._incoming, ignore_errors=True)
        for part in (self._kept, self._incoming):
            part.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def incoming(self) -> Iterator[Path]:
        """Gives an empty folder, which is gone after the block unless it was kept."""
        with tempfile.TemporaryDirectory(dir=self._incoming) as name:
            folder = Path(name, "files")
            folder.mkdir()
            yield folder

    def keep(self, key: str, folder: Path) -> None:
        """Takes a folder in that `incoming` gave, in one step, and makes room for it."""
        with self._lock:
            there = self._kept / key
            if not there.is_dir():
                folder.rename(there)
            os.utime(there)
            self._make_room()

    def open(self, key: str) -> list[tuple[str, BinaryIO]] | None:
        """Opens the files of a key, which can be read to their end whatever happens to the folder; None if it has none.

        Returns:
            Paths, parted by slashes, and files; the caller closes them.
        """
        with self._lock:
            folder = self._kept / key
            if not folder.is_dir():
                return None
            os.utime(folder)
            found: list[tuple[str, BinaryIO]] = []
            try:
                for path in sorted(folder.rglob("*")):
                    if path.is_file():
                        found.append((path.relative_to(folder).as_posix(), path.open("rb")))
            except OSError:
                for _, file in found:
                    file.close()
                raise
            return found

    def drop(self, key: str) -> None:
        """Removes a folder."""
        with self._lock:
            shutil.rmtree(self._kept / key, ignore_errors=True)

    def _make_room(self) -> None:
        """Removes the oldest until the rest fits."""
        newest_first = sorted(
            self._kept.iterdir(), key=lambda folder: folder.stat().st_mtime_ns, reverse=True
        )
        size = 0
        for folder in newest_first:
            size += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            if size > self.most_bytes:
                shutil.rmtree(folder, ignore_errors=True)
