"""The gRPC listeners, with the same servicer behind each: one row a request, load from h2load.

`pygrpc-native` takes part where it is installed; the project does not need it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import uvloop
from matplotlib.figure import Figure

from bench.report import Result, medians, write
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_features.inputs import feeds_from_rows
from everloop_inference.adapters.engines import LocalEngines
from everloop_inference.domain import Answer, ServingPolicy, Wanted
from everloop_inference.fakes import INPUTS, ROW, MemoryArtifacts, sample_artifact
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.predict import Predictor
from everloop_inference.rpc import GrpcioServer, Limits, Methods, NativeServer
from everloop_inference.servicer import OipServicer

CONCURRENCY = (1, 8, 32, 128)
SECONDS, REPEATS = 1, 9
METHOD = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(np.int64): "INT64",
}


class NoLog:
    """What a listener costs does not depend on it."""

    def offer(
        self, answer: Answer, block: Any, record_ids: Any, latency_micros: Any, size: int
    ) -> None:
        """Forgets."""


async def serve(kind: str, port: int) -> None:
    """Runs one server until it is killed."""
    artifacts, artifact = MemoryArtifacts(), sample_artifact()
    artifacts.runs["run"] = artifact
    loader = Loader(artifacts, LocalEngines(), Path(tempfile.mkdtemp()), 1e-4)
    models = Models()
    policy = ServingPolicy(id_field="flight_id", max_rows=1000)
    models.swap(loader.load(Wanted("flights", 1, "run", artifact.sha256), policy))
    methods: Any = Methods()
    servicer = OipServicer(Predictor(models, NoLog(), "0" * 16), lambda: True)
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, methods)
    address = f"127.0.0.1:{port}"
    if kind == "pygrpc-native":
        third: Any = importlib.import_module("pygrpc_native.aio").server()
        for service, handlers in GrpcioServer.handlers(methods).items():
            third.add_registered_method_handlers(service, handlers)
        third.add_insecure_port(address)
        await third.start()
    else:
        native = kind == "native"
        server = NativeServer(methods, Limits()) if native else GrpcioServer(methods, Limits())
        await server.start(address)
    print("ready", flush=True)
    await asyncio.Event().wait()


def request() -> bytes:
    """A framed ModelInfer of one row in raw contents."""
    asked = oip.ModelInferRequest(model_name="flights", id="1")
    for name, values in feeds_from_rows([ROW], INPUTS).items():
        text = values.dtype == object
        datatype = "BYTES" if text else DATATYPES[values.dtype]
        asked.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        raw = values[0, 0].encode() if text else values.tobytes()
        asked.raw_input_contents.append(len(raw).to_bytes(4, "little") + raw if text else raw)
    message: bytes = asked.SerializeToString()
    return b"\0" + len(message).to_bytes(4) + message


@contextmanager
def started(kind: str) -> Iterator[tuple[psutil.Process, int]]:
    """The process and the port of a server that answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.listeners", kind, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield psutil.Process(server.pid), port
        finally:
            server.kill()


def measure(server: psutil.Process, port: int, clients: int, body: Path) -> tuple[float, float]:
    """Requests a second, and CPU microseconds of the server for one."""
    before = server.cpu_times()
    rate, answered = load(port, clients, body)
    after = server.cpu_times()
    used = after.user + after.system - before.user - before.system
    return rate, used / answered * 1e6


def check(port: int, body: Path) -> None:
    """Raises if the server refuses: h2load looks at the HTTP status only."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        ask: Any = channel.unary_unary(METHOD)
        ask(body.read_bytes()[5:], timeout=10)


def load(port: int, clients: int, body: Path) -> tuple[float, int]:
    """Requests a second, and how many there were; each client has a connection and one request on it."""
    command = ["h2load", "-D", str(SECONDS), "-c", str(clients), "-m", "1", "-d", str(body)]
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    ran = subprocess.run(
        [*command, *headers, f"http://127.0.0.1:{port}{METHOD}"],
        capture_output=True,
        text=True,
        check=True,
    )
    counts = re.search(r"(\d+) succeeded, (\d+) failed", ran.stdout)
    rate = re.search(r"finished in .*?, ([\d.]+) req/s", ran.stdout)
    assert counts and rate and int(counts[1]) and counts[2] == "0", ran.stdout
    return float(rate[1]), int(counts[1])


def main() -> None:
    """Measures every listener in turn, several times."""
    if not shutil.which("h2load"):
        sys.exit("h2load is missing (Debian: apt install nghttp2-client)")
    kinds = ["native", "grpcio"]
    if importlib.util.find_spec("pygrpc_native"):
        kinds.insert(1, "pygrpc-native")
    cases = [(kind, clients) for clients in CONCURRENCY for kind in kinds]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {case: [] for case in cases}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        body = Path(folder) / "request"
        body.write_bytes(request())
        running = {kind: servers.enter_context(started(kind)) for kind in kinds}
        for _, port in running.values():
            check(port, body)
        # In turn, second by second: whatever else the machine does falls on all alike.
        for _ in range(REPEATS):
            for kind, clients in cases:
                found[kind, clients].append(measure(*running[kind], clients, body))
    figures: list[dict[str, float | str]] = []
    rates: dict[tuple[str, int], float] = {}
    for kind in kinds:
        for clients in CONCURRENCY:
            rates[kind, clients] = medians([rate for rate, _ in found[kind, clients]])
            figures.append(
                {
                    "listener": kind,
                    "concurrency": clients,
                    "requests/s": rates[kind, clients],
                    "CPU µs": medians([cpu for _, cpu in found[kind, clients]]),
                }
            )
    ratios = {
        f"c{clients}.vs_{kind}": rates["native", clients] / rates[kind, clients]
        for kind in kinds[1:]
        for clients in CONCURRENCY
    }
    write(
        Result(
            "listeners",
            "One servicer behind each gRPC listener, one process",
            figures,
            ratios,
            "Open Inference Protocol, single rows, raw contents, a small model, no prediction log. Medians of "
            f"{REPEATS} runs of {SECONDS} s, taken in turn; h2load shares the cores.",
        ),
        plot(rates, kinds),
    )


def plot(rates: dict[tuple[str, int], float], kinds: list[str]) -> Figure:
    """Draws throughput over concurrency."""
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    for kind in kinds:
        axes.plot(CONCURRENCY, [rates[kind, n] for n in CONCURRENCY], marker="o", label=kind)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("connections, one request on each")
    axes.set_ylabel("requests/s")
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


if __name__ == "__main__":
    if len(sys.argv) == 3:
        uvloop.run(serve(sys.argv[1], int(sys.argv[2])))
    else:
        main()
