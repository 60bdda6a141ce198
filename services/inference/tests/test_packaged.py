"""One model by itself, as a process: the doors and the answers of the platform, without any of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from services.inference.tests.conftest import free_ports

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_inference.addresses import bound
from everloop_inference.domain import Wanted
from everloop_inference.fakes import sample_artifact
from everloop_inference.packaged import VERSION, Package

PIPELINE = """
pipeline: flights
schema:
  id: flight_id
  time: departs
  fields:
    flight_id: {type: string}
    carrier: {type: string}
    distance: {type: float}
    age: {type: float, nullable: true}
    stops: {type: int}
    weekend: {type: bool, nullable: true}
    departs: {type: timestamp, timezone: America/New_York}
    late: {type: bool, nullable: true}
target: {field: late, task: binary}
features: {distance: {kind: number, of: distance}}
training: {families: [logistic_regression]}
"""


def sample_package(folder: Path) -> Package:
    folder.mkdir()
    artifact = sample_artifact()
    artifact.write(folder)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    package = Package(folder, Wanted("flights", 3, "a-run", artifact.sha256))
    (folder / VERSION).write_text(json.dumps(asdict(package.wanted)))
    return package


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return sample_package(tmp_path / "model")


@pytest.fixture
def serve(package: Package, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts the process and returns it with the addresses of its doors."""
    started: list[subprocess.Popen[str]] = []

    def start(http: str = "", rpc: str = "") -> tuple[subprocess.Popen[str], str, str]:
        if not http:
            http, rpc = (f"127.0.0.1:{port}" for port in free_ports(2))
        told = {name: value for name, value in os.environ.items() if "EVERLOOP" not in name}
        told |= {
            "EVERLOOP_MODEL_DIR": str(package.folder),
            "EVERLOOP_DATA_DIR": str(tmp_path / "data"),
            "EVERLOOP_HTTP_ADDRESS": http,
            "EVERLOOP_PREDICT_GRPC_ADDRESS": rpc,
        }
        command = [sys.executable, "-m", "everloop_inference.packaged"]
        process = subprocess.Popen(command, env=told, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process, http, rpc

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_both_doors_give_the_golden_answers(package: Package, serve: Callable[[], Any]) -> None:
    process, http, rpc = serve()
    golden = json.loads((package.folder / "golden.json").read_bytes())
    with (
        httpx.Client(base_url=f"http://{http}", trust_env=False) as client,
        grpc.insecure_channel(rpc) as channel,
    ):
        grpc.channel_ready_future(channel).result(30)
        path = "/v1/models/flights:predict"
        answer = client.post(path, json={"rows": golden["rows"]}).raise_for_status().json()
        over_http = [item["probabilities"] for item in answer["predictions"]]
        request = native.PredictRequest(model="flights")
        for row in golden["rows"]:
            request.rows.add().update(row)
        predicted = native_grpc.InferenceServiceStub(channel).Predict(request, timeout=10)
        over_grpc = [list(item.probabilities) for item in predicted.predictions]
        metrics = client.get("/metrics").text
    np.testing.assert_allclose(over_http, golden["probabilities"], atol=1e-6)
    np.testing.assert_allclose(over_grpc, golden["probabilities"], atol=1e-6)
    assert (answer["version"], predicted.version) == (3, 3)
    assert 'everloop_inference_served_version{model="flights"} 3.0' in metrics
    process.terminate()
    assert process.wait(20) == 0


def test_what_is_damaged_does_not_start(package: Package, serve: Callable[[], Any]) -> None:
    with (package.folder / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    process, *_ = serve()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "CHECKSUM_MISMATCH" in said and "flights version 3 cannot serve" in said


@pytest.mark.parametrize("taken", [0, 1])
def test_it_takes_no_requests_of_another_process(serve: Callable[..., Any], taken: int) -> None:
    doors = [f"127.0.0.1:{port}" for port in free_ports(2)]
    with bound(doors[taken]) as other:
        other.listen()
        process, *_ = serve(*doors)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{doors[taken]} is taken by another process" in said


@pytest.mark.parametrize("module", ["packaged", "aws_lambda"])
def test_it_needs_none_of_the_platform(module: str) -> None:
    program = f"""
import sys
import everloop_inference.{module}
print(*{{"ray", "mlflow", "pandas", "sklearn", "starlette"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
