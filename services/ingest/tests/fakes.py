"""Fakes of what is outside, and the small pipeline whose records they take."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Any

import orjson
import pytest

from everloop_ingest.domain import ObjectFile, Part, ShardsLost, Version
from everloop_runtime.errors import EverloopError, Kind

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
    versioning = "dvc"

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.tags: dict[str, list[str]] = {}
        self.fetched: list[Part] = []

    def uri(self, part: Part) -> str:
        return f"memory://{part.md5}"

    def publish(
        self,
        version: Version,
        parts: Sequence[Part],
        new: Mapping[str, Path],
        check: Callable[[], None],
    ) -> ObjectFile:
        check()
        tag = f"{version.pipeline}/v{version.number}"
        for md5, path in new.items():
            self.content[md5] = path.read_bytes()
            path.unlink()
        self.tags[tag] = [part.md5 for part in parts]
        assert self.content.keys() >= {*self.tags[tag]}
        size = sum(part.size_bytes for part in parts)
        md5 = hashlib.md5("".join(self.tags[tag]).encode()).hexdigest() + ".dir"
        folder = f"{version.pipeline}/rows"
        return ObjectFile(folder, f"memory://{md5}", md5, size, tag, "c" * 40)

    def fetch(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        self.fetched += parts
        paths = [folder / f"{number}.parquet" for number in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            path.write_bytes(self.content[part.md5])
        return paths


class FolderFiles:
    """Fake of `ports.ShardFiles`: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, key: str, content: bytes) -> None:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            (self.folder / key).unlink(missing_ok=True)

    def stored_before(self, folder: str, time: datetime) -> list[str]:
        found = (path for path in (self.folder / folder).rglob("*") if path.is_file())
        return [
            str(path.relative_to(self.folder))
            for path in found
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) < time
        ]

    def fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        if lost := [key for key in keys if not (self.folder / key).exists()]:
            raise ShardsLost(lost)
        return [
            Path(shutil.copy(self.folder / key, folder / f"{index}.parquet"))
            for index, key in enumerate(keys)
        ]


class MemorySink:
    """Fake of `ports.RecordSink`, whose deliveries are there when `acknowledge` is set."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes | None, bytes]] = []
        self.timestamps: list[int] = []
        self.error: EverloopError | None = None
        self.acknowledge = threading.Event()
        self.acknowledge.set()

    def begin(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timestamp: int,
        patience: float = 0.0,
    ) -> MemorySink:
        if self.error:
            raise self.error
        self.sent += records
        self.timestamps += [timestamp] * len(records)
        return self

    def wait(self, seconds: float) -> None:
        if not self.acknowledge.wait(seconds):
            raise EverloopError(Kind.UNAVAILABLE, "BROKER_UNAVAILABLE", "no acknowledgement")


def lost_turn(lock_file: Path) -> Callable[[], None]:
    """What asks whether a turn is over, of one that is; nobody else may write while it is asked."""

    def check() -> None:
        with lock_file.open("w") as lock, pytest.raises(BlockingIOError):
            flock(lock, LOCK_EX | LOCK_NB)
        raise EverloopError(Kind.UNAVAILABLE, "LEASE_LOST", "lost")

    return check
