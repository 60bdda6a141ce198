"""Events on disk while the broker is away: one file per write, replayed in the order of their names."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from everloop_inference.ports import Message

__all__ = ["Damaged", "Spill"]

log = logging.getLogger(__name__)

_LENGTHS = struct.Struct("<III")
_LOCK = "lock"
_DAMAGED = ".damaged"
DAMAGED_FILES = 8
"""Files that are kept for whoever wants to know what was in them."""


class Damaged(Exception):
    """A file does not hold what was written."""


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    size: int
    rows: list[tuple[str, int]]
    """Model and rows of every message in it."""


class Spill:
    """A folder of files that belongs to one replica; the folders of replicas that are gone are taken over at start.

    A file appears whole or not at all. It is not forced to the platter: it must outlive the process, not the machine.
    """

    def __init__(self, folder: Path, owner: str, max_bytes: int) -> None:
        """Makes `folder/<owner>` and takes over what nobody owns any more.

        Args:
            folder: folder of all replicas on this node.
            owner: unique name of this replica.
            max_bytes: size of all files beyond which nothing is taken.
        """
        self._own = folder / owner
        self._max = max_bytes
        self._next = 0
        self._files: deque[_File] = deque()
        self._bytes = 0
        self._left: list[Message] = []
        self.adopted: list[tuple[str, int]] = []
        """Model and rows of every message that was taken over."""
        folder.mkdir(parents=True, exist_ok=True)
        # Replicas start together: a folder that is not locked yet is no orphan, and an orphan has one heir.
        with _alone(folder):
            self._own.mkdir()
            self._lock = _own(self._own)
            for orphan in _orphans(folder, self._own):
                try:
                    self._take_over(orphan)
                except OSError:
                    log.exception("files of the prediction log cannot be taken over: %s", orphan)

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._files

    def write(self, messages: Sequence[Message]) -> bool:
        """Stores messages behind the others; False, and nothing stored, if the disk limit or the disk says no."""
        content = b"".join(_frame(message) for message in messages)
        if self._bytes + len(content) > self._max:
            return False
        path = self._path()
        part = path.with_suffix(".part")
        try:
            part.write_bytes(content)
            part.rename(path)
        except OSError as error:
            log.error("the prediction log cannot spill: %s", error)
            with contextlib.suppress(OSError):
                part.unlink()
            return False
        rows = [(message.model, message.rows) for message in messages]
        self._add(_File(path, len(content), rows))
        return True

    def oldest(self) -> list[Message]:
        """Returns the messages of the oldest file.

        Raises:
            Damaged: they are lost.
            OSError: it cannot be read now.
        """
        if not self._left:
            self._left = _read(self._files[0].path)
        return self._left

    def forget(self) -> None:
        """Removes the oldest file: its messages are stored elsewhere now."""
        file = self._pop()
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            log.error("a file stays, and the next replica will log it again: %s", error)

    def set_aside(self) -> list[tuple[str, int]]:
        """Gives the oldest file up and keeps it as `*.damaged`; returns model and rows of its messages."""
        file = self._pop()
        try:
            with _alone(self._own.parent):
                _set_aside(file.path)
        except OSError:
            log.exception("a damaged file cannot be moved: %s", file.path)
        return file.rows

    def keep(self, messages: list[Message]) -> None:
        """Leaves only these of the oldest file's messages, for this replica: on disk nothing changes."""
        self._left = messages

    def close(self) -> None:
        """Lets the next replica take over what is left."""
        with _alone(self._own.parent):
            if self.is_empty():
                try:
                    (self._own / _LOCK).unlink()
                    self._own.rmdir()
                except OSError as error:
                    log.warning("the folder of the prediction log stays: %s", error)
            os.close(self._lock)

    def _add(self, file: _File) -> None:
        self._files.append(file)
        self._bytes += file.size

    def _pop(self) -> _File:
        file = self._files.popleft()
        self._bytes -= file.size
        self._left = []
        return file

    def _path(self) -> Path:
        self._next += 1
        return self._own / f"{self._next:012d}.events"

    def _take_over(self, orphan: Path) -> None:
        for old in sorted(orphan.glob("*.events")):
            try:
                rows = [(message.model, message.rows) for message in _read(old)]
            except (Damaged, OSError):
                log.exception("a file of the prediction log is lost: %s", old)
                _set_aside(old)
                continue
            path = self._path()
            old.rename(path)
            self._add(_File(path, path.stat().st_size, rows))
            self.adopted.extend(rows)
        for rest in orphan.iterdir():
            rest.unlink()
        orphan.rmdir()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder of all replicas while its folders come and go."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def _orphans(folder: Path, own: Path) -> list[Path]:
    """Folders whose owner is gone, the oldest first."""
    found = []
    for path in folder.iterdir():
        if path == own or not path.is_dir():
            continue
        try:
            held = _own(path)
        except OSError:
            continue  # its owner lives, or another replica was quicker
        os.close(held)
        found.append(path)
    return sorted(found, key=lambda path: path.stat().st_mtime)


def _own(folder: Path) -> int:
    """Locks a folder for as long as the process lives.

    Raises:
        OSError: somebody else has it.
    """
    held = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        raise
    return held


def _set_aside(path: Path) -> None:
    """Moves a file to the folder of all replicas, in place of the oldest one where there are enough."""
    folder = path.parent.parent
    kept = folder / f"{path.parent.name}-{path.stem}{_DAMAGED}"
    size = path.stat().st_size
    path.rename(kept)
    log.error("%d bytes of the prediction log are damaged and are kept as %s", size, kept)
    found = sorted(folder.glob(f"*{_DAMAGED}"), key=lambda one: one.stat().st_mtime)
    for old in found[:-DAMAGED_FILES]:
        old.unlink()


def _frame(message: Message) -> bytes:
    head = json.dumps(
        {
            "model": message.model,
            "rows": message.rows,
            "topic": message.topic,
            "headers": [(name, item.decode("latin-1")) for name, item in message.headers],
        }
    ).encode()
    lengths = _LENGTHS.pack(len(head), len(message.key), len(message.value))
    return b"".join((lengths, head, message.key, message.value))


def _read(path: Path) -> list[Message]:
    """Returns the messages of a file.

    Raises:
        Damaged: it is not what was written, or it is gone.
        OSError: it cannot be read.
    """
    try:
        return list(_messages(path.read_bytes()))
    except FileNotFoundError as error:
        raise Damaged(f"{path} is gone") from error
    except (struct.error, ValueError, TypeError, LookupError, AttributeError) as error:
        raise Damaged(f"{path}: {error!r}") from error


def _messages(content: bytes) -> Iterator[Message]:
    position = 0
    while position < len(content):
        head, key, value = _LENGTHS.unpack_from(content, position)
        position += _LENGTHS.size
        if position + head + key + value > len(content):
            raise ValueError("cut off")
        parts = json.loads(content[position : position + head])
        position += head
        yield Message(
            model=parts["model"],
            rows=parts["rows"],
            topic=parts["topic"],
            key=content[position : position + key],
            value=content[position + key : position + key + value],
            headers=tuple((name, item.encode("latin-1")) for name, item in parts["headers"]),
        )
        position += key + value
