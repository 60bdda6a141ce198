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
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import uvloop
from matplotlib.figure import Figure

from bench.report import Result, medians, write
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_features.inputs import feeds_from_rows
from everloop_inference.domain import Answer, ServingPolicy, Wanted
from everloop_inference.fakes import INPUTS, ROW, MemoryArtifacts, sample_artifact
from everloop_inference.load import Loader
from everloop_inference.predict import Predictor
from everloop_inference.rpc import GrpcioServer, Limits, Methods, NativeServer
from everloop_inference.servicer import OipServicer
from everloop_inference.swap import Models

CONCURRENCY = (1, 8, 32, 128)
SECONDS, REPEATS = 3, 3
METHOD = "/inference.GRPCInferenceService/ModelInfer"
DATATYPES = {
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
    np.dtype(np.int64): "INT64",
}


class NoLog:
    """What a listener costs does not depend on it."""

    def offer(self, answer: Answer, feeds: Any, record_ids: Any, size: int) -> None:
        """Forgets."""


async def serve(kind: str, port: int) -> None:
    """Runs one server until it is killed."""
    artifacts, artifact = MemoryArtifacts(), sample_artifact()
    artifacts.runs["run"] = artifact
    loader = Loader(artifacts, Path(tempfile.mkdtemp()), 1e-4)
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
        server = NativeServer if kind == "native" else GrpcioServer
        await server(methods, Limits()).start(address)
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


def measure(kind: str, body: Path) -> list[tuple[float, float]]:
    """Requests a second and CPU microseconds a request, at each concurrency."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "bench.listeners", kind, str(port)]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            for clients in CONCURRENCY:
                used = psutil.Process(server.pid).cpu_times()
                rate, answered = load(port, clients, body)
                now = psutil.Process(server.pid).cpu_times()
                cpu = now.user + now.system - used.user - used.system
                found.append((rate, cpu / answered * 1e6))
        finally:
            server.kill()
    return found


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
    assert counts and rate and counts[2] == "0", ran.stdout
    return float(rate[1]), int(counts[1])


def main() -> None:
    """Measures every listener in turn, several times."""
    if not shutil.which("h2load"):
        sys.exit("h2load is missing (Debian: apt install nghttp2-client)")
    kinds = ["native", "grpcio"]
    if importlib.util.find_spec("pygrpc_native"):
        kinds.insert(1, "pygrpc-native")
    rounds: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "request"
        body.write_bytes(request())
        for _ in range(REPEATS):
            for kind in kinds:
                rounds[kind].append(measure(kind, body))
    figures: list[dict[str, float | str]] = []
    rates: dict[tuple[str, int], float] = {}
    for kind in kinds:
        for place, clients in enumerate(CONCURRENCY):
            rates[kind, clients] = medians([found[place][0] for found in rounds[kind]])
            cpu = medians([found[place][1] for found in rounds[kind]])
            figures.append(
                {
                    "listener": kind,
                    "concurrency": clients,
                    "requests/s": rates[kind, clients],
                    "CPU µs": cpu,
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
            f"{REPEATS} interleaved rounds; h2load shares the cores.",
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
