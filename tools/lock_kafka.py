"""Writes the lock of Kafka's jars: resolves the Maven coordinates below and records what came.

Run it to move to another version of Kafka: `.venv/bin/python tools/lock_kafka.py`, then read the difference.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from jgo.env import EnvironmentBuilder
from jgo.maven import MavenContext

KAFKA = "org.apache.kafka:kafka_2.13:4.3.1"
# Kafka logs through slf4j and brings no backend. The backend is taken by itself: resolved together with Kafka, the
# versions that its parent manages win, and Kafka's clients fall back to 3.9.1.
LOG_BACKEND = ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4")
LOCK = Path(__file__).parents[1] / "libs/everloop/src/everloop/stack/kafka.lock"


def coordinates_of(jar: Path, repository: Path) -> str:
    """Return `group:artifact:version` from a jar's place in a Maven repository."""
    *group, artifact, version, _ = jar.relative_to(repository).parts
    return f"{'.'.join(group)}:{artifact}:{version}"


def main() -> None:
    """Resolve, and replace the lock."""
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder) / "repository"
        context = MavenContext(repo_cache=repository, timeout=60)
        environment = EnvironmentBuilder(
            context=context, cache_dir=Path(folder) / "env"
        ).from_endpoint(KAFKA)
        names = {jar.name for jar in environment.all_jars}
        group, artifact, version = LOG_BACKEND
        names.add(context.project(group, artifact).at_version(version).artifact().resolve().name)
        lines = sorted(
            f"{hashlib.sha256(jar.read_bytes()).hexdigest()}  {coordinates_of(jar, repository)}  {jar.name}"
            for jar in repository.rglob("*.jar")
            if jar.name in names
        )
    lines.sort(key=lambda line: line.split()[1])
    header = f"# Jars of {KAFKA} and its log backend; written by tools/lock_kafka.py.\n"
    LOCK.write_text(header + "\n".join(lines) + "\n")
    print(f"{LOCK}: {len(lines)} jars")


if __name__ == "__main__":
    main()
