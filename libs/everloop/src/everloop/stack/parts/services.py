"""The five services: one process each, told by the environment where everything is."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import STEPS_BACK, Part, Progress
from everloop.stack.probes import grpc_serving

__all__ = ["parts"]

# Part, its name in addresses, and what must be healthy before it starts.
_SERVICES = (
    ("ingest", "ingest", ("kafka", "s3")),
    ("registry_gateway", "registry", ("kafka", "mlflow")),
    ("trainer", "trainer", ("kafka", "s3", "mlflow", "ray", "registry_gateway")),
    ("inference", "inference", ("kafka", "ray", "registry_gateway")),
    ("monitor", "monitor", ("kafka", "s3", "mlflow", "registry_gateway")),
)

# Those that call others, and show them a token where they are asked for one.
_CALLING = {"trainer", "inference"}
# A promotion, a chunk's evaluation and a training have seconds; records and predictions have callers who wait.
_STEP_BACK = {"registry_gateway", "trainer", "monitor"}


def parts(home: Home, endpoints: Endpoints) -> list[Part]:
    """Describe the services."""
    return [_part(home, endpoints, *row) for row in _SERVICES]


def _part(home: Home, endpoints: Endpoints, name: str, alias: str, needs: tuple[str, ...]) -> Part:
    address = f"127.0.0.1:{endpoints.ports[alias]}"
    data = home.data(name)
    environment = {
        "EVERLOOP_DATA_DIR": str(data),
        "EVERLOOP_DATABASE_URL": f"sqlite:///{data / f'{name}.db'}",
        "EVERLOOP_GRPC_ADDRESS": address,
        "EVERLOOP_METRICS_ADDRESS": endpoints.metrics[alias],
        "NML_DISABLE_USAGE_LOGGING": "1",
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_TRACKING_URI": endpoints.mlflow_uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if callers := os.environ.get("EVERLOOP_CALLERS_FILE"):
        environment["EVERLOOP_CALLERS_FILE"] = str(Path(callers).resolve())
        if name in _CALLING:
            environment["EVERLOOP_TOKEN"] = os.environ.get("EVERLOOP_TOKEN", "")
    if name == "inference":
        environment["EVERLOOP_HTTP_ADDRESS"] = f"127.0.0.1:{endpoints.ports['inference_http']}"
        environment["EVERLOOP_PREDICT_GRPC_ADDRESS"] = endpoints.inference_grpc

    def prepare(progress: Progress) -> None:
        data.mkdir(parents=True, exist_ok=True)

    return Part(
        name=name,
        command=(sys.executable, "-m", f"everloop_{name}"),
        environment=environment,
        endpoint=endpoints.inference_http_url if name == "inference" else address,
        probe=functools.partial(grpc_serving, address),
        needs=needs,
        prepare=prepare,
        deadline_seconds=180,
        stop_seconds=20,
        niceness=STEPS_BACK if name in _STEP_BACK else 0,
    )
