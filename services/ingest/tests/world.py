"""A world in memory around the real database: everything that outlives a process, and a process."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from services.ingest.tests.fakes import FolderFiles, MemoryRepository, MemorySink, Message

from everloop_contracts.pipeline import Pipeline
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
from everloop_ingest.domain import Batch, Partition, Version
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
from everloop_runtime.database import Database
from everloop_runtime.events import Event, decode
from everloop_runtime.leases import Leases
from everloop_runtime.service import Stopper

STREAM_LIMITS = StreamLimits(max_bytes=2**20, timeout_seconds=20.0, idle_seconds=20.0)


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
