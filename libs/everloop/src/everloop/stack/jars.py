"""Kafka's jars: fetched once by Maven coordinates, and used only when they are what the committed lock names.

`kafka.lock` has one jar a line: SHA-256, coordinates `group:artifact:version`, file name. With the whole set named,
nothing is resolved at run time, and a jar that was changed on the way or on the disk is refused.
`tools/lock_kafka.py` writes it.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from everloop.stack.errors import JarMismatch, StackError
from everloop.stack.home import locked

__all__ = ["LOCK", "Jar", "obtain", "read_lock"]

LOCK = Path(__file__).with_name("kafka.lock")


@dataclass(frozen=True)
class Jar:
    """One line of the lock."""

    sha256: str
    coordinates: str
    name: str


def read_lock(path: Path = LOCK) -> list[Jar]:
    """Read a lock; `#` starts a comment line."""
    lines = path.read_text().splitlines()
    return [Jar(*line.split()) for line in lines if line and not line.startswith("#")]


def obtain(
    cache: Path,
    progress: Callable[[str], None],
    lock: Path = LOCK,
) -> list[Path]:
    """Return the jars' paths under `cache`, fetching those that are missing and checking all of them.

    Several processes may call this at once; one fetches, the others wait.

    Raises:
        JarMismatch: A jar is not the one the lock names. A cached one stays where it is, to be looked at.
        StackError: A jar could not be fetched.
    """
    jars = read_lock(lock)
    folder = cache / "kafka"
    with locked(cache / "kafka.download"):
        missing = [jar for jar in jars if not (folder / jar.name).exists()]
        if missing:
            _fetch(missing, folder, cache / "maven", progress)
        with ThreadPoolExecutor(4) as pool:
            sums = list(pool.map(lambda jar: _sha256(folder / jar.name), jars))
    for jar, found in zip(jars, sums, strict=True):
        if found != jar.sha256:
            raise JarMismatch(
                f"{folder / jar.name} is not the file that {lock.name} names "
                f"(SHA-256 {found}, expected {jar.sha256}): delete it to fetch it again"
            )
    return [folder / jar.name for jar in jars]


def _fetch(
    jars: list[Jar],
    folder: Path,
    downloads: Path,
    progress: Callable[[str], None],
) -> None:
    from jgo.maven import MavenContext

    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(downloads, ignore_errors=True)
    context = MavenContext(repo_cache=downloads, timeout=60)

    def fetch(jar: Jar) -> None:
        group, artifact, version = jar.coordinates.split(":")
        try:
            found = context.project(group, artifact).at_version(version).artifact().resolve()
        except Exception as error:
            raise StackError(f"{jar.coordinates} could not be fetched: {error}") from error
        if (digest := _sha256(found)) != jar.sha256:
            raise JarMismatch(
                f"{jar.name} as fetched has SHA-256 {digest}, but {LOCK.name} says {jar.sha256}: it was not kept"
            )
        found.rename(folder / jar.name)

    progress(f"fetching Kafka: {len(jars)} jars, once")
    pool = ThreadPoolExecutor(8)
    try:
        for count, _ in enumerate(pool.map(fetch, jars), start=1):
            if count % 10 == 0 or count == len(jars):
                progress(f"fetched {count} of {len(jars)} jars")
    finally:
        pool.shutdown(cancel_futures=True)
    shutil.rmtree(downloads, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
