"""The files of a model version, and what tells whether they are the right ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

__all__ = ["COMPILED", "EXPORT", "artifact_sha256", "digests"]

EXPORT = "model.onnx"
"""The exported graph among them."""
COMPILED = "__pycache__"
"""Folder of what Python has compiled: never among them."""


def digests(folder: Path) -> dict[str, str]:
    """SHA-256, hexadecimal, of every file below a folder, by its path there, parted by slashes.

    What Python writes beside a model's own modules, `__pycache__`, is left out: it is no part of a version.

    Raises:
        OSError: one cannot be read.
    """
    return {
        path.relative_to(folder).as_posix(): _digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and COMPILED not in path.parts
    }


def artifact_sha256(files: Mapping[str, str]) -> str:
    """SHA-256, hexadecimal, of the lines that `sha256sum` prints for files, ordered by path.

    >>> artifact_sha256({"model.onnx": "ab", "golden.json": "cd"})[:12]
    '6c890b9f04cc'
    """
    lines = "".join(f"{digest}  {path}\n" for path, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
