"""A Ray cluster, a registry and the inference service for tests, each a thing that can be killed."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.fakes import ROW, Artifact, sample_artifact

REPOSITORY = Path(__file__).parents[3]
NODE = "services.inference.tests.ray_node"


class Registry(registry_pb2_grpc.RegistryServiceServicer):
    """A registry gateway in this process."""

    def __init__(self) -> None:
        self.versions: list[registry_pb2.ModelVersion] = []
        self.trials: list[registry_pb2.Trial] = []
        self.reports: list[registry_pb2.ReportRolloutRequest] = []
        self.artifacts: dict[tuple[str, int], Artifact] = {}

    def GetArtifacts(
        self, request: registry_pb2.GetArtifactsRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.GetArtifactsResponse]:
        for path, content in self.artifacts[request.model, request.version].files.items():
            yield registry_pb2.GetArtifactsResponse(path=path, data=content)

    def ListProduction(
        self, request: registry_pb2.ListProductionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListProductionResponse:
        return registry_pb2.ListProductionResponse(versions=self.versions, trials=self.trials)

    def ReportRollout(
        self, request: registry_pb2.ReportRolloutRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ReportRolloutResponse:
        self.reports.append(request)
        return registry_pb2.ReportRolloutResponse(state=registry_pb2.ROLLOUT_STATE_RUNNING)


class Cluster:
    """A Ray head, a registry and the inference service, each a thing that can be killed."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        self.folder = folder
        self.ports = ports
        self.http = f"127.0.0.1:{ports[0]}"
        self.control = f"127.0.0.1:{ports[1]}"
        self.registry = Registry()  # type: ignore[abstract]  # the rest is not called
        self.server = grpc.server(ThreadPoolExecutor(2))
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(self.registry, self.server)
        self.server.add_insecure_port(f"127.0.0.1:{ports[2]}")
        self.server.start()
        token = folder / "token"
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "EVERLOOP_HOME": str(folder),
            "EVERLOOP_DATA_DIR": str(folder / "data"),
            "EVERLOOP_PIPELINES_DIR": str(REPOSITORY / "pipelines"),
            "EVERLOOP_HTTP_ADDRESS": self.http,
            "EVERLOOP_GRPC_ADDRESS": self.control,
            "EVERLOOP_REGISTRY_ADDRESS": f"127.0.0.1:{ports[2]}",
            "EVERLOOP_PREDICT_GRPC_ADDRESS": f"127.0.0.1:{ports[3]}",
            "EVERLOOP_METRICS_ADDRESS": f"127.0.0.1:{ports[4]}",
            "EVERLOOP_RAY_ADDRESS": f"127.0.0.1:{ports[5]}",
            "EVERLOOP_KAFKA_BOOTSTRAP": f"127.0.0.1:{ports[6]}",
            "EVERLOOP_WATCH_FAILURES": "3",
            # Every limit here is far from what it takes on a machine that has nothing else to do.
            "EVERLOOP_DEPLOY_SECONDS": "480",
        }
        self.service: subprocess.Popen[bytes] | None = None
        self.head: subprocess.Popen[bytes] | None = None
        self.nodes: list[subprocess.Popen[bytes]] = []

    def start_head(self, cpus: int = 4) -> None:
        names = (
            "gcs",
            "object-manager",
            "node-manager",
            "agent",
            "agent-grpc",
            "runtime-env",
            "metrics",
        )
        self.head = self._started(
            self.folder / "ray.ready",
            "everloop.stack.ray_head",
            *(
                f"--{name}={port}"
                for name, port in zip(names, self.ports[5:6] + self.ports[7:13], strict=True)
            ),
            f"--home={self.folder}",
            f"--temp={self.folder / 'r'}",
            f"--spill={self.folder}",
            f"--ready={self.folder / 'ray.ready'}",
            f"--cpus={cpus}",
            "--object-store-bytes=100000000",
        )

    def start_node(self, cpus: int = 1) -> subprocess.Popen[bytes]:
        """A second node on this machine, which ends as a whole when it is killed."""
        ready = self.folder / "node.ready"
        address = f"127.0.0.1:{self.ports[5]}"
        node = self._started(ready, NODE, address, str(cpus), str(ready))
        self.nodes.append(node)
        return node

    def start_service(self) -> None:
        self.service = self._start("everloop_inference")

    def _started(self, ready: Path, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a node as a supervisor does: Ray gives up where the machine is too busy to start it in 30 s."""
        for _ in range(5):
            ready.unlink(missing_ok=True)
            process = self._start(module, *arguments)
            while process.poll() is None:
                if ready.exists():
                    return process
                time.sleep(0.1)
        raise AssertionError(f"{module} does not start")

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{module}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=output,
                stderr=output,
            )

    def publish(self, version: int, model: str = "flights") -> None:
        """Registers a version and puts it into Production."""
        others = [one for one in self.registry.versions if one.model != model]
        self.registry.versions = [*others, self.register(version, model)]

    def register(self, version: int, model: str = "flights") -> registry_pb2.ModelVersion:
        """Makes a version whose files the registry hands out."""
        artifact = sample_artifact(bias=version / 10)
        self.registry.artifacts[model, version] = artifact
        return registry_pb2.ModelVersion(
            model=model,
            version=version,
            run_id=f"{model}-run-{version}",
            onnx_sha256=artifact.sha256,
            artifact_sha256=artifact.artifact_sha256,
        )

    def predict(self, model: str = "flights") -> int:
        """Returns the version that answers; 0 if nobody does."""
        connection = http.client.HTTPConnection(self.http, timeout=30)
        try:
            body = json.dumps({"rows": [ROW]})
            connection.request("POST", f"/v1/models/{model}:predict", body)
            answer = json.loads(connection.getresponse().read())
            return int(answer.get("version", 0))
        except (OSError, http.client.HTTPException, ValueError):
            return 0
        finally:
            connection.close()

    def serving(self) -> bool:
        """Whether the service process calls itself ready."""
        with grpc.insecure_channel(self.control) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def replica_pid(self) -> int:
        """Process that holds the HTTP listener."""
        port = int(self.http.rpartition(":")[2])
        for connection in psutil.net_connections("tcp4"):
            local = connection.laddr
            if connection.status == psutil.CONN_LISTEN and local and local.port == port:
                return int(connection.pid or 0)
        return 0

    def stop(self) -> None:
        for process in (self.service, *self.nodes, self.head):
            if process and process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
        self.server.stop(0)


def replicas(cluster: Cluster, deployment: str) -> list[psutil.Process]:
    """Processes of the replicas of a deployment of this cluster."""
    found = []
    for node in (cluster.head, *cluster.nodes):
        if node is None or node.poll() is not None:
            continue
        for process in psutil.Process(node.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                # A replica that is asked has the method at the end of its title.
                kind, _, name = (process.cmdline() or [""])[0].rpartition(":")
                if kind.startswith("ray::ServeReplica:") and name.split(".")[0] == deployment:
                    found.append(process)
    return found


@contextlib.contextmanager
def cluster_of_processes() -> Iterator[Cluster]:
    """A cluster that is stopped in the end; nothing of it runs yet."""
    probes = [socket.socket() for _ in range(15)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ev", ignore_cleanup_errors=True) as name:
        cluster = Cluster(Path(name), ports)
        try:
            yield cluster
        finally:
            cluster.stop()
            for path in (*cluster.folder.glob("*.log"), *cluster.folder.glob("data/logs/*.log")):
                # Shown where the test fails.
                print(f"--- {path.name}\n{path.read_text()[-30000:]}")
