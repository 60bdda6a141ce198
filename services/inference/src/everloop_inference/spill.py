"""Events on disk while the broker is away: one file per write, replayed in the order of their names."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from everloop_inference.ports import Message

__all__ = ["Spill"]

log = logging.getLogger(__name__)

_LENGTHS = struct.Struct("<III")
_LOCK = "lock"


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
        self._files: deque[tuple[Path, int]] = deque()
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
                self._take_over(orphan)

    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return not self._files

    def write(self, messages: Sequence[Message]) -> bool:
        """Stores messages behind the others; False, and nothing stored, if the disk limit or the disk says no."""
        content = b"".join(_frame(message) for message in messages)
        if self._bytes + len(content) > self._max:
            return False
        path = self._path()
        try:
            path.with_suffix(".part").write_bytes(content)
            path.with_suffix(".part").rename(path)
        except OSError as error:
            log.error("the prediction log cannot spill: %s", error)
            return False
        self._add(path, len(content))
        return True

    def oldest(self) -> list[Message]:
        """Returns the messages of the oldest file."""
        if not self._left:
            self._left = list(_read(self._files[0][0]))
        return self._left

    def forget(self) -> None:
        """Removes the oldest file: its messages are stored elsewhere now."""
        path, size = self._files.popleft()
        self._bytes -= size
        self._left = []
        path.unlink(missing_ok=True)

    def keep(self, messages: list[Message]) -> None:
        """Leaves only these of the oldest file's messages, for this replica: on disk nothing changes."""
        self._left = messages

    def close(self) -> None:
        """Lets the next replica take over what is left."""
        with _alone(self._own.parent):
            if self.is_empty():
                (self._own / _LOCK).unlink()
                self._own.rmdir()
            os.close(self._lock)

    def _add(self, path: Path, size: int) -> None:
        self._files.append((path, size))
        self._bytes += size

    def _path(self) -> Path:
        self._next += 1
        return self._own / f"{self._next:012d}.events"

    def _take_over(self, orphan: Path) -> None:
        for old in sorted(orphan.glob("*.events")):
            try:
                rows = [(message.model, message.rows) for message in _read(old)]
            except (struct.error, ValueError, KeyError):
                log.exception("a file of the prediction log is damaged and is left out: %s", old)
                continue
            path = self._path()
            old.rename(path)
            self._add(path, path.stat().st_size)
            self.adopted.extend(rows)
        for rest in orphan.iterdir():
            rest.unlink()
        orphan.rmdir()


@contextmanager
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


def _read(path: Path) -> Iterator[Message]:
    content = path.read_bytes()
    position = 0
    while position < len(content):
        head, key, value = _LENGTHS.unpack_from(content, position)
        position += _LENGTHS.size
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
