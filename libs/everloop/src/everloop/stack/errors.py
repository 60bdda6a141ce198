"""Errors of the embedded stack. Each carries what a person needs to act on it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["JarMismatch", "JavaMissing", "PartFailed", "StackError", "StackInterrupted"]


class StackError(Exception):
    """Anything that kept the stack from doing what was asked."""


class StackInterrupted(StackError):
    """`up` was asked to stop before it was done."""


class JavaMissing(StackError):
    """No Java of at least version 17 is on this machine."""


class JarMismatch(StackError):
    """A jar is not the one that the committed lock names."""


class PartFailed(StackError):
    """A part did not become healthy.

    Attributes:
        part: Name of the part, as in `status`.
        reason: What was seen last.
        log: Path of the part's log.
        tail: The last lines of that log.
    """

    def __init__(self, part: str, reason: str, log: Path) -> None:
        self.part = part
        self.reason = reason
        self.log = log
        self.tail = last_lines(log)
        quoted = "\n".join(f"    {line}" for line in self.tail) or "    (the log is empty)"
        super().__init__(f"{part}: {reason}\n  last lines of {log}:\n{quoted}")


def last_lines(path: Path, count: int = 15) -> list[str]:
    """Return the last lines of a text file, reading at most 16 KiB; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 16384))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
