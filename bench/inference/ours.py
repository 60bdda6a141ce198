"""Everloop as it is deployed: Ray head and broker of the embedded stack, the service process, its replicas on Ray.

Only the registry is a stand-in: it names versions, once a second, and takes no part in a prediction.
"""

from __future__ import annotations

import http.client
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
from prometheus_client.parser import text_string_to_metric_families

from bench.flights_model import PIPELINES
from bench.inference.running import Running, ServerFailed, free_port, program, watch
from bench.inference.subject import MODEL, Subject
from everloop import stack
from everloop.stack.endpoints import Endpoints
from everloop_contracts.artifacts import EXPORT, digests
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc

__all__ = ["start", "started"]

LOG_SECONDS = 60
PART_BYTES = 256 * 1024


class _Registry(registry_pb2_grpc.RegistryServiceServicer):
    """Says what is in Production, and hands out its files."""

    def __init__(self, versions: Sequence[registry_pb2.ModelVersion], folder: Path) -> None:
        self._answer = registry_pb2.ListProductionResponse(versions=versions)
        self._folder = folder

    def GetArtifacts(
        self, request: registry_pb2.GetArtifactsRequest, context: grpc.ServicerContext
    ) -> Iterator[registry_pb2.GetArtifactsResponse]:
        for name in ("model.onnx", "manifest.json", "golden.json"):
            with (self._folder / name).open("rb") as file:
                while part := file.read(PART_BYTES):
                    yield registry_pb2.GetArtifactsResponse(path=name, data=part)

    def ListProduction(
        self, request: registry_pb2.ListProductionRequest, context: grpc.ServicerContext
    ) -> registry_pb2.ListProductionResponse:
        return self._answer


@contextmanager
def start(subject: Subject, home: Path) -> Iterator[Running]:
    """Runs one replica with one model."""
    with started(subject, home, [MODEL], replicas=1) as running:
        yield running


@contextmanager
def started(
    subject: Subject, home: Path, models: Sequence[str], replicas: int
) -> Iterator[Running]:
    """Runs Everloop.

    Args:
        subject: the model.
        home: empty folder.
        models: names under which the model is in Production.
        replicas: how many.
    """
    sha256 = digests(subject.folder)[EXPORT]
    versions = [
        registry_pb2.ModelVersion(model=name, version=1, run_id="run", onnx_sha256=sha256)
        for name in models
    ]
    registry = grpc.server(ThreadPoolExecutor(1))
    servicer = _Registry(versions, subject.folder)  # type: ignore[abstract]  # the rest is not called
    registry_pb2_grpc.add_RegistryServiceServicer_to_server(servicer, registry)
    registry_port = registry.add_insecure_port("127.0.0.1:0")
    registry.start()
    try:
        try:
            there = stack.up(home, only=("kafka", "ray"), pipelines=PIPELINES)
        except stack.StackError as error:
            raise ServerFailed(str(error)) from error
        try:
            http_port, grpc_port = free_port(), free_port()
            variables = {
                **_environment(there, home),
                "EVERLOOP_REGISTRY_ADDRESS": f"127.0.0.1:{registry_port}",
                "EVERLOOP_HTTP_ADDRESS": f"127.0.0.1:{http_port}",
                "EVERLOOP_PREDICT_GRPC_ADDRESS": f"127.0.0.1:{grpc_port}",
                "EVERLOOP_REPLICAS": str(replicas),
            }
            command = [sys.executable, "-m", "everloop_inference"]
            with program("inference", command, variables, home) as process:
                address = f"127.0.0.1:{http_port}"
                running = Running(
                    address,
                    f"127.0.0.1:{grpc_port}",
                    home,
                    ("ray", "inference"),
                    beside=("kafka",),
                    check=watch(process, "inference", home),
                )
                # A scrape sees one of several replicas, now this and now that.
                yield (
                    running
                    if replicas > 1
                    else replace(
                        running,
                        refused=lambda: _refused(address),
                        settle=lambda: _wait_for_log(address),
                    )
                )
        finally:
            stack.down(home)
    finally:
        registry.stop(0)


def _environment(there: Endpoints, home: Path) -> dict[str, str]:
    return {
        **there.environment(),
        "EVERLOOP_DATA_DIR": str(home / "data" / "inference"),
        "EVERLOOP_GRPC_ADDRESS": f"127.0.0.1:{free_port()}",
        "EVERLOOP_METRICS_ADDRESS": f"127.0.0.1:{free_port()}",
    }


def _counters(address: str) -> dict[str, float]:
    """Returns a replica's counters and gauges, each summed over its labels."""
    connection = http.client.HTTPConnection(address, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    total: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            total[sample.name] = total.get(sample.name, 0) + sample.value
    return total


def _refused(address: str) -> int:
    seen = _counters(address)
    dropped = seen.get("everloop_inference_log_dropped_rows_total", 0)
    return int(seen.get("everloop_inference_errors_total", 0) + dropped)


def _wait_for_log(address: str) -> None:
    """Returns when the broker has acknowledged every prediction."""
    deadline = time.monotonic() + LOG_SECONDS
    while True:
        seen = _counters(address)
        places = ("served", "logged", "spilled", "dropped", "buffered")
        books = {
            place: seen.get(f"everloop_inference_log_{place}_rows{ending}", 0)
            for place, ending in zip(places, ("_total", "_total", "", "_total", ""), strict=True)
        }
        if books["served"] == books["logged"] > 0:
            return
        if time.monotonic() > deadline:
            raise ServerFailed(f"the prediction log does not settle: {books}")
        time.sleep(0.2)
