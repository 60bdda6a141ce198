"""Kafka's jars are used only as the lock names them."""

import hashlib
from pathlib import Path

import pytest

from everloop.stack import jars
from everloop.stack.errors import JarMismatch


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """A lock of two jars that are both in the cache."""
    folder = tmp_path / "cache" / "kafka"
    folder.mkdir(parents=True)
    lines = ["# a comment"]
    for name in ("a-1.jar", "b-1.jar"):
        (folder / name).write_bytes(name.encode())
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()}  g:{name[0]}:1  {name}")
    path = tmp_path / "kafka.lock"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_jars_that_match_are_returned_without_fetching(tmp_path: Path, lock: Path) -> None:
    said: list[str] = []
    found = jars.obtain(tmp_path / "cache", said.append, lock)
    assert [path.name for path in found] == ["a-1.jar", "b-1.jar"]
    assert said == []


def test_a_tampered_jar_is_refused_by_name(tmp_path: Path, lock: Path) -> None:
    (tmp_path / "cache" / "kafka" / "b-1.jar").write_bytes(b"something else")
    with pytest.raises(JarMismatch, match=r"b-1\.jar is not the file that kafka\.lock names"):
        jars.obtain(tmp_path / "cache", print, lock)


def test_the_committed_lock_names_one_kafka_and_its_log_backend() -> None:
    found = jars.read_lock()
    versions = {
        jar.coordinates.split(":")[2]
        for jar in found
        if jar.coordinates.startswith("org.apache.kafka:")
    }
    assert versions == {"4.3.1"}
    assert any(jar.name.startswith("log4j-slf4j-impl-") for jar in found)
    assert all(len(jar.sha256) == 64 for jar in found)
    assert len({jar.name for jar in found}) == len(found)
