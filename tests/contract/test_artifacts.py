"""Replicas get the files of versions from the registry gateway itself: its servicer, and inference's client."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest

import everloop_registry_gateway
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.adapters.registry import GrpcRegistry
from everloop_inference.domain import ServingPolicy, Wanted
from everloop_inference.fakes import Artifact, sample_artifact
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.reconcile import Reconciler
from everloop_registry_gateway.adapters.artifact_cache import ArtifactCache
from everloop_registry_gateway.adapters.memory import MemoryRegistry
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.artifacts import PART_BYTES, Artifacts
from everloop_registry_gateway.domain import ModelVersion, Stage
from everloop_registry_gateway.servicer import RegistryServicer
from everloop_registry_gateway.settings import RegistrySettings
from everloop_registry_gateway.watch import ProductionWatch
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper

Files = dict[str, bytes]
BIG = bytes(range(256)) * (5 * PART_BYTES // 512)


class Gateway:
    """A registry gateway whose MLflow is in memory, and a client of it."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.folder = folder
        self.mlflow = MemoryRegistry()
        self.database = database
        self.cache = ArtifactCache(folder / "cache", 1 << 24)
        self.artifacts = Artifacts(self.mlflow, self.cache)
        self.watch = ProductionWatch(database, 0.02)
        unused: Any = None
        servicer = RegistryServicer(
            database, unused, unused, unused, unused, self.artifacts, self.watch
        )
        address = f"unix:{folder / 'gateway.sock'}"
        self.server = GrpcServer(
            RegistrySettings(grpc_address=address, drain_seconds=0, grpc_workers=4),
            [],
            [lambda it: registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, it)],
        )
        self.stopper = Stopper()
        self.server.start(self.stopper)
        self.watch.start(self.stopper)
        self.client = GrpcRegistry(address, 10, "", 20)

    def register(self, artifact: Artifact, more: Files | None = None) -> Wanted:
        """Puts a version into Production; returns it as a replica is told of it."""
        self.mlflow.files["run"] = artifact.files | (more or {})
        files = self.artifacts.look("flights", "run", artifact.sha256)
        version = ModelVersion(
            model="flights",
            version=1,
            stage=Stage.PRODUCTION,
            training_id="training",
            run_id="run",
            model_uri="",
            onnx_sha256=artifact.sha256,
            family="",
            metrics={},
            dataset_version=1,
            dataset_tag="",
            cause="CAUSE_DRIFT",
            gates=(),
            trained_event_id="",
            training_cause_id="",
            create_time=datetime.now(UTC),
            promote_time=None,
            etag="",
            files=files,
        )
        with self.database.unit_of_work() as work:
            store = Store(work.connection)
            store.add_model("flights")
            store.add_version(version)
        (wanted,) = self.client.production().versions
        return wanted

    def forget(self) -> None:
        """Loses its copy."""
        for folder in (self.folder / "cache" / "kept").iterdir():
            self.cache.drop(folder.name)
        self.mlflow.downloads.clear()


@pytest.fixture
def gateway(migrated: Callable[[Path], Path], tmp_path: Path) -> Iterator[Gateway]:
    empty = migrated(Path(everloop_registry_gateway.__file__).parent / "migrations")
    database = Database(f"sqlite:///{shutil.copy(empty, tmp_path / 'gateway.db')}")
    gateway = Gateway(tmp_path, database)
    yield gateway
    gateway.client.close()
    gateway.stopper.stop()
    gateway.watch.stop()
    gateway.server.stop()
    database.close()


@pytest.fixture
def loader(gateway: Gateway, tmp_path: Path) -> Loader:
    return Loader(gateway.client, LocalEngines(), tmp_path / "replica" / "artifacts")


def on_disk(tmp_path: Path) -> list[Path]:
    """What is left in a replica's folders."""
    return [path for path in (tmp_path / "replica").rglob("*") if path.is_file()]


def test_a_replica_loads_what_the_gateway_hands_out(gateway: Gateway, loader: Loader) -> None:
    wanted = gateway.register(sample_artifact(), {"model/weights": BIG, "model/__init__.py": b""})
    assert len(wanted.artifact_sha256) == 64
    assert loader.load(wanted, ServingPolicy()).version == 1


def test_a_replica_that_looks_once_a_minute_serves_a_promoted_version_at_once(
    gateway: Gateway, tmp_path: Path
) -> None:
    models = Models()
    loader = Loader(gateway.client, LocalEngines(), tmp_path / "replica" / "artifacts")
    state = tmp_path / "replica" / "serving.json"
    reconciler = Reconciler(gateway.client, loader, models, {}, state, "replica")
    stopping, settled = threading.Event(), threading.Event()
    threads = [
        threading.Thread(target=reconciler.run, args=(stopping, 60.0, settled)),
        threading.Thread(target=reconciler.watch, args=(stopping,)),
    ]
    for thread in threads:
        thread.start()
    assert settled.wait(10)
    gateway.register(sample_artifact())
    began = time.monotonic()
    while not models.serving and time.monotonic() < began + 10:
        time.sleep(0.01)
    took = time.monotonic() - began
    stopping.set()
    reconciler.wake()
    gateway.client.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert models.serving["flights"].version == 1
    assert took < 5


def test_many_replicas_get_the_files_of_one_download(gateway: Gateway, tmp_path: Path) -> None:
    """More than the gateway serves at once: the others ask again."""
    wanted = gateway.register(sample_artifact(), {"model/weights": BIG})
    gateway.forget()
    with futures.ThreadPoolExecutor(8) as pool:
        folders = [tmp_path / f"replica-{number}" for number in range(8)]
        loaders = [Loader(gateway.client, LocalEngines(), folder / "a") for folder in folders]
        done = pool.map(lambda loader: loader.load(wanted, ServingPolicy()), loaders)
        assert {model.version for model in done} == {1}
    assert gateway.mlflow.downloads == ["run"]


def test_a_copy_is_handed_out_while_mlflow_is_away(gateway: Gateway, loader: Loader) -> None:
    wanted = gateway.register(sample_artifact())
    gateway.mlflow.reachable = False
    assert loader.load(wanted, ServingPolicy()).version == 1


def test_without_a_copy_a_replica_is_told_to_wait(
    gateway: Gateway, loader: Loader, tmp_path: Path
) -> None:
    wanted = gateway.register(sample_artifact())
    gateway.forget()
    gateway.mlflow.reachable = False
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, ServingPolicy())
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "ARTIFACT_UNAVAILABLE")
    assert on_disk(tmp_path) == []


@pytest.mark.parametrize("path", ["model.onnx", "manifest.json", "golden.json", "model/weights"])
def test_files_that_were_changed_in_mlflow_reach_no_replica(
    gateway: Gateway, loader: Loader, tmp_path: Path, path: str
) -> None:
    wanted = gateway.register(sample_artifact(), {"model/weights": BIG})
    gateway.forget()
    gateway.mlflow.files["run"][path] = b"changed"
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, ServingPolicy())
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "ARTIFACT_CHANGED")
    assert on_disk(tmp_path) == []


def test_a_damaged_copy_is_made_anew(gateway: Gateway, loader: Loader, tmp_path: Path) -> None:
    wanted = gateway.register(sample_artifact())
    (folder,) = (gateway.folder / "cache" / "kept").iterdir()
    (folder / "golden.json").write_bytes(b"{}")
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, ServingPolicy())
    assert caught.value.kind is Kind.UNAVAILABLE
    assert on_disk(tmp_path) == []
    assert loader.load(wanted, ServingPolicy()).version == 1


def test_a_replica_does_not_take_more_than_it_may_keep(gateway: Gateway, tmp_path: Path) -> None:
    wanted = gateway.register(sample_artifact(), {"model/weights": BIG})
    small = GrpcRegistry(f"unix:{gateway.folder / 'gateway.sock'}", 10, "", 20, most_bytes=len(BIG))
    with pytest.raises(EverloopError) as caught:
        Loader(small, LocalEngines(), tmp_path / "replica" / "a").load(wanted, ServingPolicy())
    small.close()
    assert caught.value.reason == "ARTIFACT_TOO_LARGE"
    assert on_disk(tmp_path) == []


class Broken(registry_pb2_grpc.RegistryServiceServicer):
    """A gateway that says what a test wants."""

    def __init__(self, parts: list[tuple[str, bytes]], end: str) -> None:
        self.parts = parts
        self.end = end
        self.sent = threading.Event()

    def GetArtifacts(
        self, request: registry_pb2.GetArtifactsRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.GetArtifactsResponse]:
        for path, data in self.parts:
            yield registry_pb2.GetArtifactsResponse(path=path, data=data)
        self.sent.set()
        if self.end == "cut":
            context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        if self.end == "hang":
            gone = threading.Event()
            context.add_callback(gone.set)
            gone.wait(20)


@pytest.fixture
def broken() -> Iterator[Callable[..., GrpcRegistry]]:
    started: list[tuple[grpc.Server, GrpcRegistry]] = []

    def make(servicer: Any, seconds: float = 10) -> GrpcRegistry:
        server = grpc.server(futures.ThreadPoolExecutor(2))
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        client = GrpcRegistry(f"127.0.0.1:{port}", 5, "", seconds)
        started.append((server, client))
        return client

    yield make
    for server, client in started:
        client.close()
        server.stop(None).wait()


@pytest.mark.parametrize("end", ["cut", "hang"])
def test_a_stream_that_breaks_off_in_a_file_leaves_nothing(
    broken: Callable[..., GrpcRegistry], tmp_path: Path, end: str
) -> None:
    artifact = sample_artifact()
    parts = [("golden.json", artifact.files["golden.json"]), ("model.onnx", artifact.graph[:50])]
    client = broken(Broken(parts, end), 1.0)
    wanted = Wanted("flights", 1, "run", artifact.sha256, artifact.artifact_sha256)
    loader = Loader(client, LocalEngines(), tmp_path / "replica" / "artifacts")
    with pytest.raises(EverloopError) as caught:
        loader.fetch(wanted)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "ARTIFACT_UNAVAILABLE")
    assert not loader.has(wanted)
    assert on_disk(tmp_path) == []


def test_a_file_that_is_missing_from_the_stream_is_noticed(
    broken: Callable[..., GrpcRegistry], tmp_path: Path
) -> None:
    artifact = sample_artifact()
    parts = [(path, content) for path, content in artifact.files.items() if path != "golden.json"]
    wanted = Wanted("flights", 1, "run", artifact.sha256, artifact.artifact_sha256)
    loader = Loader(broken(Broken(parts, "ok")), LocalEngines(), tmp_path / "replica" / "a")
    with pytest.raises(EverloopError) as caught:
        loader.load(wanted, ServingPolicy())
    assert caught.value.reason == "CHECKSUM_MISMATCH"
    assert on_disk(tmp_path) == []


@pytest.mark.parametrize("path", ["/etc/passwd", "../up", "model/../../up", ""])
def test_no_file_is_written_beside_its_folder(
    broken: Callable[..., GrpcRegistry], tmp_path: Path, path: str
) -> None:
    folder = tmp_path / "replica" / "in"
    folder.mkdir(parents=True)
    with pytest.raises(EverloopError) as caught:
        broken(Broken([(path, b"x")], "ok")).download(Wanted("flights", 1, "run", ""), folder)
    assert "names a file" in caught.value.message
    assert on_disk(tmp_path) == []


def test_a_gateway_of_before_is_waited_for(
    broken: Callable[..., GrpcRegistry], tmp_path: Path
) -> None:
    old: Any = type("Old", (registry_pb2_grpc.RegistryServiceServicer,), {})
    with pytest.raises(EverloopError) as caught:
        broken(old()).download(Wanted("flights", 1, "run", ""), tmp_path)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_the_files_of_a_version_that_was_registered_before_they_were_recorded(
    gateway: Gateway, loader: Loader
) -> None:
    wanted = gateway.register(sample_artifact())
    with gateway.database.unit_of_work() as work:
        work.connection.exec_driver_sql("UPDATE model_versions SET files = NULL")
    gateway.forget()
    (before,) = gateway.client.production().versions
    assert before == replace(wanted, artifact_sha256="")
    assert loader.load(before, ServingPolicy()).version == 1
