"""Ingest as a process of its own, on real Kafka and S3."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kafka import KafkaConsumer
from services.ingest.tests.fakes import SPEC

from everloop.stack import Endpoints
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from everloop_contracts.stubs.everloop.ingest.v1.dataset_pb2 import DatasetVersion
from everloop_runtime import clients


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


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
