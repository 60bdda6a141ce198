"""Ingest as the process that users run, on a real broker and object store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from bench.inference.running import free_port
from bench.ingest.measure import Cost
from bench.ingest.readings import readings, specification
from everloop.stack.endpoints import Endpoints
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from everloop_runtime.clients import call, channel

__all__ = ["Ingest", "running"]

START_SECONDS = 120
CUT_SECONDS = 110
TAIL_ROWS = 40_000
"""What the writer may hold unsettled until it is asked for a version: `shard_bytes` of each partition."""
STREAM_RECORDS = 500
"""Records of one message of a stream."""
LOOK_SECONDS = 0.1


class Ingest:
    """A running ingest with one pipeline."""

    def __init__(self, process: psutil.Process, address: str, log: Path, name: str) -> None:
        self._process = process
        self._log = log
        self._name = name
        self._channel = channel(address)
        self._stub = ingest_pb2_grpc.IngestServiceStub(self._channel)

    def version(self, records: int, size: int) -> Cost:
        """What all records cost that were on the topic at its start, from their first fetch to the cut version."""
        self.until(lambda accepted: accepted >= records - TAIL_ROWS)
        request = ingest_pb2.CutVersionRequest(pipeline=self._name, request_id="bench")
        dataset = call(self._stub.CutVersion, request, timeout=CUT_SECONDS).dataset
        ended = time.time()
        assert dataset.rows == records, f"{dataset.rows} of {records} records are in the version"
        return Cost(ended - self._began(), self.processor(), records, size)

    def stream(self, records: int, sensors: int) -> Cost:
        """What streaming all records costs the server, until the last one is acknowledged."""
        values = [value for _, value in readings(records, sensors)]
        messages = [
            ingest_pb2.StreamRecordsRequest(
                pipeline=self._name, records=values[first : first + STREAM_RECORDS]
            )
            for first in range(0, records, STREAM_RECORDS)
        ]
        began, processor = time.perf_counter(), self.processor()
        accepted = sum(answer.accepted for answer in self._stub.StreamRecords(iter(messages)))
        seconds = time.perf_counter() - began
        assert accepted == records
        return Cost(seconds, self.processor() - processor, records, sum(map(len, values)))

    def until(self, enough: Callable[[int], bool], seconds: float = 600) -> None:
        """Looks until so many records are accepted."""
        deadline = time.monotonic() + seconds
        while not enough(self.accepted()):
            assert time.monotonic() < deadline, self._log.read_text()[-3000:]
            time.sleep(LOOK_SECONDS)

    def accepted(self) -> int:
        """Records that are settled; 0 before it answers."""
        request = ingest_pb2.GetPipelineStatsRequest(pipeline=self._name)
        return int(
            self._stub.GetPipelineStats(
                request, timeout=START_SECONDS, wait_for_ready=True
            ).accepted
        )

    def processor(self) -> float:
        """Processor seconds of the process and of what it ran, git for one."""
        spent = self._process.cpu_times()
        return float(spent.user + spent.system + spent.children_user + spent.children_system)

    def memory(self) -> float:
        """Resident bytes."""
        return float(self._process.memory_info().rss)

    def close(self) -> None:
        self._channel.close()

    def _began(self) -> float:
        """When the writer was at its first partition's start, as its log says."""
        for line in self._log.read_text().splitlines():
            entry: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            if "from offset" in entry.get("message", ""):
                return datetime.fromisoformat(entry["time"]).timestamp()
        raise AssertionError("the writer has no partition")


@contextmanager
def running(
    home: Path,
    there: Endpoints,
    name: str,
    sensors: int,
    settings: Mapping[str, object] | None = None,
) -> Iterator[Ingest]:
    """Starts ingest with nothing but the topic, and stops it."""
    pipelines, data = home / "pipelines", home / "data"
    pipelines.mkdir(parents=True)
    (pipelines / f"{name}.yaml").write_text(yaml.safe_dump(specification(name, sensors)))
    address, log = f"127.0.0.1:{free_port()}", home / "log"
    environment = there.environment() | {
        "EVERLOOP_PIPELINES_DIR": str(pipelines),
        "EVERLOOP_DATA_DIR": str(data),
        "EVERLOOP_DATABASE_URL": f"sqlite:///{data / 'ingest.db'}",
        "EVERLOOP_GRPC_ADDRESS": address,
        "EVERLOOP_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
        **{f"EVERLOOP_{key.upper()}": str(value) for key, value in (settings or {}).items()},
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "everloop_ingest"], env=environment, stdout=file, stderr=file
        )
    ingest = Ingest(psutil.Process(process.pid), address, log, name)
    try:
        ingest.until(lambda accepted: True, START_SECONDS)
        yield ingest
    finally:
        ingest.close()
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
