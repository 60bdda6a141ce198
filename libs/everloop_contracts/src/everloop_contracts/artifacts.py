"""The files of a model version, and what tells whether they are the right ones."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import GetArtifactsResponse

__all__ = ["COMPILED", "EXPORT", "TooLarge", "artifact_sha256", "digests", "write_files"]

EXPORT = "model.onnx"
"""The exported graph among them."""
COMPILED = "__pycache__"
"""Folder of what Python has compiled: never among them."""


class TooLarge(Exception):
    """The files are more than they may be."""


def write_files(
    parts: Iterable[GetArtifactsResponse], folder: Path, most_bytes: int = 2 * 1024**3
) -> None:
    """Writes the files that a gateway hands out below a folder.

    Raises:
        TooLarge: they are more than `most_bytes`; what has come by then is there.
        ValueError: the path of one leads out of the folder.
        OSError: one cannot be written.
    """
    size = 0
    for path, parts_of_file in itertools.groupby(parts, lambda part: part.path):
        target = folder / _inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            for part in parts_of_file:
                size += len(part.data)
                if size > most_bytes:
                    raise TooLarge(f"more than {most_bytes} bytes")
                file.write(part.data)


def _inside(path: str) -> PurePosixPath:
    found = PurePosixPath(path)
    if found.is_absolute() or ".." in found.parts or not found.parts:
        raise ValueError(f"{path!r} is no path below a folder")
    return found


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
