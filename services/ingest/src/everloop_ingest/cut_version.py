"""Cutting a dataset version: catch up with the topic, build the rows, publish them, announce them."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2
from everloop_ingest import metrics
from everloop_ingest.adapters.store import Store
from everloop_ingest.build_rows import build_rows
from everloop_ingest.convert import dataset_version
from everloop_ingest.domain import State, Version
from everloop_ingest.ports import DataRepository, RecordLog, ShardFiles, Writer
from everloop_ingest.settle import SOURCE
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event

__all__ = ["BuildLimits", "CutVersion"]

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class BuildLimits:
    """What building a version's rows may use."""

    folder: Path
    memory_bytes: int
    threads: int


class CutVersion:
    """The use case. One version is cut at a time; a version that a crash left behind is finished first.

    Every step may be repeated: the version and its shards are fixed by the transaction that begins it, the same shards
    give the same file, and the repository takes the same file any number of times.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        store: Store,
        files: ShardFiles,
        repository: DataRepository,
        record_log: RecordLog,
        writer: Writer,
        limits: BuildLimits,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes the pipelines by name and what the steps need; `wait` pauses between looks at the positions."""
        self._pipelines = pipelines
        self._store = store
        self._files = files
        self._repository = repository
        self._log = record_log
        self._writer = writer
        self._limits = limits
        self._wait = wait
        self._lock = threading.Lock()

    def __call__(self, pipeline: Pipeline, request_id: str, seconds: float) -> Version:
        """Cuts from everything that was on the topic when this was called; waits for that at most `seconds`.

        Returns:
            The version, available. The same one for the same `request_id`; the newest where nothing is new.

        Raises:
            EverloopError: kind precondition, reason NO_RECORDS; kind deadline, reason WRITER_BEHIND; kind unavailable.
                A version that was begun is finished later, by a repeat or by `finish`.
        """
        deadline = time.monotonic() + seconds
        known = self._store.requested(pipeline.name, request_id)
        if known is None:
            self._catch_up(pipeline, deadline)
        elif known.state is State.AVAILABLE:
            return known
        return self.cut(pipeline, request_id, max(0.0, deadline - time.monotonic()))

    def cut(self, pipeline: Pipeline, request_id: str, seconds: float) -> Version:
        """Cuts from what is stored already; see `__call__` for the rest."""
        with self._alone(seconds):
            self._finish_all(pipeline.name)
            version = self._store.begin_version(pipeline.name, request_id, datetime.now(UTC))
            if version is None:
                raise EverloopError(
                    Kind.PRECONDITION, "NO_RECORDS", f"{pipeline.name} has no accepted record yet"
                )
            return self._finish(version)

    def finish(self) -> None:
        """Finishes what a crash or an outage left behind."""
        with self._alone(seconds=-1):
            self._finish_all()

    def _catch_up(self, pipeline: Pipeline, deadline: float) -> None:
        topic = pipeline.record_topic
        ends = self._log.end_offsets(topic, max(0.0, deadline - time.monotonic()))
        while behind := self._behind(topic, ends):
            if time.monotonic() >= deadline:
                raise EverloopError(
                    Kind.DEADLINE,
                    "WRITER_BEHIND",
                    f"{behind} messages of {pipeline.name} are not stored yet; ask again with the same request_id",
                )
            self._writer.flush(topic)
            self._wait(_POLL_SECONDS)

    def _behind(self, topic: str, ends: dict[int, int]) -> int:
        positions = self._store.positions(topic)
        return sum(max(0, end - positions.get(number, 0)) for number, end in ends.items())

    def _finish_all(self, pipeline: str = "") -> None:
        for version in self._store.cutting():
            if version.pipeline == pipeline or (
                not pipeline and version.pipeline in self._pipelines
            ):
                self._finish(version)

    def _finish(self, version: Version) -> Version:
        if version.state is State.AVAILABLE:
            return version
        began = time.monotonic()
        pipeline = self._pipelines[version.pipeline]
        self._limits.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cut-", dir=self._limits.folder) as name:
            folder = Path(name)
            shards = self._files.fetch(self._store.shards_of(version), folder)
            target = folder / "rows.parquet"
            rows = build_rows(
                pipeline, shards, target, self._limits.memory_bytes, self._limits.threads
            )
            file = self._repository.publish(version, target)
        available = replace(version, state=State.AVAILABLE, rows=rows, file=file)
        data = events_pb2.DatasetVersionCreated(
            dataset=dataset_version(available, self._repository.url)
        )
        event = new_event(SOURCE, pipeline.name, data, cause=version.cause_id)
        self._store.complete(available, event)
        seconds = time.monotonic() - began
        metrics.CUT_SECONDS.labels(pipeline.name).observe(seconds)
        log.info("%s: %d rows in %.2f s", file.tag, rows.rows, seconds)
        return available

    @contextmanager
    def _alone(self, seconds: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=-1 if seconds < 0 else seconds):
            raise EverloopError(
                Kind.DEADLINE,
                "CUT_RUNNING",
                "another version is being cut; ask again with the same request_id",
            )
        try:
            yield
        finally:
            self._lock.release()
