from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from everloop_inference.domain import ServingPolicy, Strategy, Trial, Wanted
from everloop_inference.fakes import (
    Artifact,
    MemoryArtifacts,
    MemoryRegistry,
    MemorySink,
    sample_artifact,
)
from everloop_inference.replica import Replica
from everloop_inference.settings import InferenceSettings


class World:
    """A replica's surroundings in memory, and the replicas started in them."""

    def __init__(self, folder: Path) -> None:
        self.registry = MemoryRegistry()
        self.artifacts = MemoryArtifacts()
        self.sink = MemorySink()
        self.policies = {"flights": ServingPolicy(id_field="flight_id", max_rows=100)}
        http, rpc = free_ports(2)
        self.settings = InferenceSettings(
            data_dir=folder,
            http_address=f"127.0.0.1:{http}",
            predict_grpc_address=f"127.0.0.1:{rpc}",
            metrics_push_seconds=0,
            reconcile_seconds=0.02,
            load_retry_max_seconds=0.05,
            log_batch_seconds=0.02,
            log_retry_seconds=0.02,
            http_max_body_bytes=200_000,
            drain_seconds=2.0,
        )
        self.replicas: list[Replica] = []

    def publish(
        self,
        version: int,
        artifact: Artifact | None = None,
        name: str = "flights",
        sha256: str = "",
    ) -> Wanted:
        """Puts a version whose answers differ from the others' into Production."""
        wanted = self.store(version, artifact, name, sha256)
        self.registry.promote(wanted)
        return wanted

    def store(
        self,
        version: int,
        artifact: Artifact | None = None,
        name: str = "flights",
        sha256: str = "",
    ) -> Wanted:
        """Makes a version that could serve."""
        artifact = artifact or sample_artifact(bias=version / 10)
        wanted = Wanted(
            name,
            version,
            f"{name}-run-{version}",
            sha256 or artifact.sha256,
            artifact.artifact_sha256,
        )
        self.artifacts.runs[wanted.run_id] = artifact
        return wanted

    def begin(
        self,
        candidate: Wanted,
        baseline: int = 1,
        strategy: Strategy = Strategy.CANARY,
        percent: float = 50.0,
        rollout: str = "rollout",
    ) -> Trial:
        """Puts a version on trial."""
        trial = Trial(rollout, candidate, baseline, strategy, percent)
        self.registry.begin(trial)
        return trial

    def replica(self) -> Replica:
        replica = Replica(
            self.settings,
            self.policies,
            "mark",
            registry=self.registry,
            artifacts=self.artifacts,
            sink=self.sink,
        )
        replica.start()
        self.replicas.append(replica)
        return replica

    def stop(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        replica.stop()


def free_port() -> int:
    (port,) = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Different ones: listeners that share a port would share their callers."""
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """Its parameter, if it has one, names the gRPC server of the replicas."""
    world = World(tmp_path / "data")
    server = getattr(request, "param", world.settings.predict_grpc_server)
    world.settings = world.settings.model_copy(update={"predict_grpc_server": server})
    yield world
    for replica in list(world.replicas):
        world.stop(replica)


class OneProcess:
    """Takes the books of several replicas, each of which is a process of its own elsewhere."""

    def register(self, collector: object) -> None:
        """Keeps nothing."""

    unregister = register


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets several replicas run in this process."""
    monkeypatch.setattr("everloop_inference.replica.REGISTRY", OneProcess())


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "did not come true in time"
            time.sleep(0.005)

    return wait
