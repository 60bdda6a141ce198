"""What ingest's tests share: a small pipeline, and a world in memory around the real database."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest

import everloop_ingest
from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store import Store
from everloop_ingest.cut_version import BuildLimits, CutVersion
from everloop_ingest.domain import Batch, ObjectFile, Partition, Version
from everloop_ingest.settle import Settle
from everloop_runtime.database import Database
from everloop_runtime.events import Event, decode

MIGRATIONS = Path(everloop_ingest.__file__).parent / "migrations"
SPEC: dict[str, Any] = {
    "pipeline": "parcels",
    "schema": {
        "id": "parcel",
        "time": "sent",
        "fields": {
            "parcel": {"type": "string"},
            "sent": {"type": "timestamp", "timezone": "America/New_York"},
            "weight": {"type": "float", "min": 0, "max": 50},
            "zone": {"type": "string", "nullable": True, "categories": ["A", "B"]},
            "lost": {"type": "bool", "nullable": True},
        },
    },
    "target": {"field": "lost", "task": "binary"},
    "features": {"weight": {"kind": "number", "of": "weight"}},
    "training": {"families": ["logistic_regression"]},
    "cut": {"rows": 100, "age": "1h"},
    "partitions": 3,
}


class Crash(BaseException):
    """What kill -9 is to a test in one process: no handler of the code under test sees it."""


@dataclass(frozen=True)
class Message:
    """One Kafka message."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


def record(parcel: str, **changes: Any) -> bytes:
    """A valid record with changes; `...` leaves a field out."""
    row = {"parcel": parcel, "sent": "2026-03-01T12:00:00Z", "weight": 1.0, "zone": "A"} | changes
    return orjson.dumps({name: value for name, value in row.items() if value is not ...})


class MemoryRepository:
    """Fake of `ports.DataRepository`: remembers what was published."""

    url = "memory://datasets"

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def publish(self, version: Version, rows: Path) -> ObjectFile:
        tag = f"{version.pipeline}/v{version.number}"
        self.content[tag] = rows.read_bytes()
        rows.unlink()
        path = f"{version.pipeline}/rows.parquet"
        return ObjectFile(path, f"memory://{tag}", "0" * 32, len(self.content[tag]), tag, "c" * 40)


class FolderFiles:
    """Fake of `ports.ShardFiles`: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, content: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        return [
            Path(shutil.copy(self.folder / key, folder / f"{index}.parquet"))
            for index, key in enumerate(keys)
        ]


@dataclass
class World:
    """Everything that outlives a process, and a process that works on it.

    Attributes:
        topic: messages of each partition, the fake of the broker; the fake of the writer is the world itself, it
            settles everything when it is asked to flush.
    """

    folder: Path
    database: Database
    pipeline: Pipeline
    topic: dict[int, list[Message]] = field(default_factory=dict)
    repository: MemoryRepository = field(default_factory=MemoryRepository)
    flushes: int = 0
    stuck: bool = False

    def __post_init__(self) -> None:
        self.topic = {number: [] for number in range(self.pipeline.partitions)}
        self.bucket = self.folder / "bucket"
        self.bucket.mkdir()
        self.restart()

    def restart(self) -> None:
        """A new process: nothing but the database, the bucket, the repository and the topic is left."""
        pipelines = {self.pipeline.name: self.pipeline}
        self.store = Store(self.database)
        self.files = FolderFiles(self.bucket)
        self.settle = Settle(pipelines, self.store, self.files, 4096)
        limits = BuildLimits(self.folder / "work", 256 * 2**20, 1)
        self.cut = CutVersion(
            pipelines,
            self.store,
            self.files,
            self.repository,
            self,
            self,
            limits,
            wait=lambda seconds: None,
        )

    def send(self, number: int, *values: bytes | None, timestamp: int | None = None) -> None:
        """Puts messages on a partition; timestamps rise over all partitions unless one is given."""
        for value in values:
            now = sum(map(len, self.topic.values())) if timestamp is None else timestamp
            offset = len(self.topic[number])
            self.topic[number].append(
                Message(offset, now, b"key", value, [("from", b"test"), ("none", None)])
            )

    def end_offsets(self, topic: str, seconds: float) -> dict[int, int]:
        return {number: len(messages) for number, messages in self.topic.items()}

    def flush(self, topic: str) -> None:
        self.flushes += 1
        if not self.stuck:
            self.settle_all()

    def settle_all(self) -> None:
        for number in self.topic:
            assert self.settle(self.batch(number))

    def batch(self, number: int) -> Batch:
        """Everything of a partition that is not settled."""
        partition = Partition(self.pipeline.record_topic, number)
        start = self.store.claim(partition, 0)
        messages = self.topic[number][start:]
        return Batch(self.pipeline.name, partition, start, start + len(messages), messages)

    def rows(self, version: Version) -> list[dict[str, Any]]:
        """Rows of a published version."""
        assert version.file is not None
        path = self.folder / "read.parquet"
        path.write_bytes(self.repository.content[version.file.tag])
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows

    def outbox(self) -> list[tuple[str, bytes, dict[str, str]]]:
        """Messages of the outbox: topic, value, headers."""
        return [
            (row.topic, row.value, dict(json.loads(row.headers)))
            for row in self.database.pending(100_000)
        ]

    def events(self, topic: str) -> list[Event]:
        return [
            decode(value, [(name, text.encode("latin-1")) for name, text in headers.items()])
            for name, value, headers in self.outbox()
            if name == topic
        ]

    def dead_letters(self) -> list[tuple[bytes, dict[str, str]]]:
        wanted = self.pipeline.dead_letter_topic
        return [(value, headers) for topic, value, headers in self.outbox() if topic == wanted]


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    return SPEC


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return Pipeline.model_validate(SPEC)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., bytes]:
    return record


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file, to copy."""
    path = tmp_path_factory.mktemp("template") / "ingest.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade(MIGRATIONS)
    database.close()
    return path


@pytest.fixture
def make_world(
    empty_database: Path, tmp_path: Path, pipeline: Pipeline
) -> Iterator[Callable[[], World]]:
    """Makes as many worlds as a test needs."""
    worlds: list[World] = []

    def make() -> World:
        folder = tmp_path / f"world-{len(worlds)}"
        folder.mkdir()
        path = shutil.copy(empty_database, folder / "ingest.db")
        worlds.append(World(folder, Database(f"sqlite:///{path}"), pipeline))
        return worlds[-1]

    yield make
    for world in worlds:
        world.database.close()


@pytest.fixture
def folder_files(tmp_path: Path) -> FolderFiles:
    folder = tmp_path / "files"
    folder.mkdir()
    return FolderFiles(folder)


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, str], type[Crash]]:
    """Makes the next call of a method raise `Crash`, `before` or `after` it has done its work."""

    def arm(owner: object, name: str, when: str) -> type[Crash]:
        real = getattr(owner, name)

        def dies(*arguments: Any, **keywords: Any) -> Any:
            monkeypatch.setattr(owner, name, real)
            if when == "after":
                real(*arguments, **keywords)
            raise Crash(f"{when} {name}")

        monkeypatch.setattr(owner, name, dies)
        return Crash

    return arm
