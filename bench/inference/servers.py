"""The servers that are measured: what each runs, how it is asked, and how it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.inference import ours
from bench.inference.doors import (
    GRPC,
    STREAM,
    STREAM_OIP,
    Door,
    http_oip,
    http_rows,
    http_tensors,
    native,
)
from bench.inference.environments import binaries
from bench.inference.running import Running, ServerFailed, free_port, program, watch
from bench.inference.subject import MODEL, Subject
from bench.report import ROOT

__all__ = ["SERVERS", "Server"]

PEERS = "bench.inference.peers"
FILES = ROOT / "bench" / "inference" / "peers"
CONTRACTS = ROOT / "libs" / "everloop_contracts" / "src"
# Ray pickles messages, and looks for their module under the name that the proto file gives it.
STUBS = CONTRACTS / "everloop_contracts" / "stubs"

TUNED_MLSERVER = {"parallel_workers": 0, "gzip_enabled": False, "metrics_endpoint": None}
TUNED_RAY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
}


@dataclass(frozen=True)
class Site:
    """Where one start of a server happens.

    Attributes:
        subject: model and rows.
        home: empty folder of its own.
        http: port; likewise grpc.
    """

    subject: Subject
    home: Path
    http: int
    grpc: int


@dataclass(frozen=True)
class Server:
    """A server that can be measured.

    Attributes:
        name: in figures and ratios.
        kind: ours, the bare listeners, or a peer.
        runs: what is behind the name, for readers.
        doors: ways in, by the name of the case.
        start: runs it in an empty folder.
        environment: name of its virtual environment; empty for this one.
        behind: True if it is far behind the best peer at every case: a short run asks it once, at 8 callers.
    """

    name: str
    kind: Literal["ours", "bare", "peer"]
    runs: str
    doors: Mapping[str, Door]
    start: Callable[[Subject, Path], AbstractContextManager[Running]]
    environment: str = ""
    behind: bool = False


def _one_command(
    name: str, command: Callable[[Site], list[str]], **variables: str
) -> Callable[[Subject, Path], AbstractContextManager[Running]]:
    """A server that is one command in a folder of its own."""

    @contextmanager
    def start(subject: Subject, home: Path) -> Iterator[Running]:
        site = Site(subject, home, free_port(), free_port())
        settings = {"BENCH_MODEL": str(subject.folder), "PYTHONPATH": str(ROOT), **variables}
        with program(name, command(site), settings, home) as process:
            yield Running(
                f"127.0.0.1:{site.http}",
                f"127.0.0.1:{site.grpc}",
                home,
                (name,),
                check=watch(process, name, home),
            )

    return start


def _bare(http: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        return [sys.executable, "-m", f"{PEERS}.bare", http, str(site.http), str(site.grpc)]

    return command


def _mlserver(**settings: object) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        ports = {"http_port": site.http, "grpc_port": site.grpc, "metrics_port": free_port()}
        model = {"name": MODEL, "implementation": f"{PEERS}.mlserver_runtime.Runtime"}
        (site.home / "settings.json").write_text(
            json.dumps({"host": "127.0.0.1", "debug": False, **ports, **settings})
        )
        (site.home / "model-settings.json").write_text(json.dumps(model))
        return [str(binaries("mlserver") / "mlserver"), "start", str(site.home)]

    return command


def _bentoml(site: Site) -> list[str]:
    service = f"{PEERS}.bentoml_service:Service"
    executable = str(binaries("bentoml") / "bentoml")
    return [executable, "serve", service, "--host", "127.0.0.1", "--port", str(site.http)]


def _litserve(site: Site) -> list[str]:
    return [str(binaries("litserve") / "python"), str(FILES / "litserve_server.py"), str(site.http)]


def _mlflow(site: Site) -> list[str]:
    programs = binaries("mlflow")
    model = site.home / "model"
    written = subprocess.run(
        [str(programs / "python"), str(FILES / "mlflow_model.py"), str(model)],
        env={"BENCH_MODEL": str(site.subject.folder), "PATH": str(programs)},
        cwd=site.home,
        capture_output=True,
        text=True,
    )
    if written.returncode:
        raise ServerFailed(f"MLflow cannot write the model: {written.stderr[-1000:]}")
    command = [str(programs / "mlflow"), "models", "serve", "--env-manager", "local"]
    return [*command, "-m", str(model), "-h", "127.0.0.1", "-p", str(site.http)]


def _ray(variant: str) -> Callable[[Site], list[str]]:
    def command(site: Site) -> list[str]:
        script = [str(binaries("ray") / "python"), str(FILES / "ray_app.py")]
        return [*script, str(site.http), str(site.grpc), variant]

    return command


SERVERS = (
    Server(
        "everloop",
        "ours",
        "as deployed: service process, Ray head, one replica on it with its own listeners; prediction log on, "
        "to an Apache Kafka on the same machine; a stand-in for the registry names the version",
        {"http": native(), "http_oip": http_oip(), "grpc": GRPC, "stream": STREAM},
        ours.start,
    ),
    Server(
        "bare",
        "bare",
        "the same listeners in one process with the graph behind them: no checks, ids, labels, log, metrics or swaps",
        {"http": http_rows("/predict"), "grpc": GRPC, "stream": STREAM_OIP},
        _one_command("bare", _bare("own")),
    ),
    Server(
        "bare-uvicorn",
        "bare",
        "the same over HTTP, but on uvicorn (httptools, uvloop)",
        {"http": http_rows("/predict")},
        _one_command("bare-uvicorn", _bare("uvicorn")),
    ),
    Server(
        "mlserver",
        "peer",
        "MLServer 1.7.1, custom runtime, in the server's process (`parallel_workers` 0); gzip, metrics off",
        {"http_oip": http_oip(), "grpc": GRPC, "stream": STREAM_OIP},
        _one_command("mlserver", _mlserver(**TUNED_MLSERVER)),
        "mlserver",
    ),
    Server(
        "mlserver-default",
        "peer",
        "MLServer 1.7.1, custom runtime, one worker process, which is its default",
        {"http_oip": http_oip(), "grpc": GRPC},
        _one_command("mlserver-default", _mlserver()),
        "mlserver",
        behind=True,
    ),
    Server(
        "bentoml",
        "peer",
        "BentoML 1.4.39, asynchronous API, one worker; access log, metrics off",
        {"http": http_rows("/predict")},
        _one_command("bentoml", _bentoml, BENTOML_DO_NOT_TRACK="True"),
        "bentoml",
        behind=True,
    ),
    Server(
        "litserve",
        "peer",
        "LitServe 0.2.19, one API server and one worker, fast queue; access log off",
        {"http": http_rows("/predict")},
        _one_command("litserve", _litserve),
        "litserve",
        behind=True,
    ),
    Server(
        "mlflow",
        "peer",
        "`mlflow models serve` of MLflow 3.17.2, ONNX flavor, tensors (no pandas), one worker",
        {"http": http_tensors("/invocations")},
        _one_command(
            "mlflow",
            _mlflow,
            MLFLOW_DISABLE_TELEMETRY="true",
            # It starts `uvicorn` by name.
            PATH=f"{binaries('mlflow')}:{os.environ['PATH']}",
        ),
        "mlflow",
        behind=True,
    ),
    Server(
        "ray",
        "peer",
        "Ray Serve 2.60.0 as it comes: its proxy, one replica",
        {"http": http_rows("/"), "grpc": GRPC},
        _one_command(
            "ray",
            _ray("plain"),
            PYTHONPATH=f"{ROOT}:{CONTRACTS}:{STUBS}",
            RAY_USAGE_STATS_ENABLED="0",
        ),
        "ray",
        behind=True,
    ),
    Server(
        "ray-tuned",
        "peer",
        "Ray Serve 2.60.0 with HAProxy, its throughput flags, orjson; one replica; access log off",
        {"http": http_rows("/"), "grpc": GRPC},
        _one_command(
            "ray-tuned",
            _ray("tuned"),
            PYTHONPATH=f"{ROOT}:{CONTRACTS}:{STUBS}",
            RAY_USAGE_STATS_ENABLED="0",
            **TUNED_RAY,
        ),
        "ray",
    ),
)
