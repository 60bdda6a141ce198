"""One model by itself as a Lambda function, under AWS's own runtime client."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from services.inference.tests.lambda_runtime import LambdaRuntime, lambda_runtime
from services.inference.tests.test_packaged import sample_package

from everloop_inference.packaged import Package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    return sample_package(tmp_path_factory.mktemp("lambda") / "model")


def start(package: Package, runtime: LambdaRuntime, data: Path) -> subprocess.Popen[str]:
    told = {name: value for name, value in os.environ.items() if "EVERLOOP" not in name}
    told |= {
        "AWS_LAMBDA_RUNTIME_API": runtime.address,
        "EVERLOOP_MODEL_DIR": str(package.folder),
        "EVERLOOP_DATA_DIR": str(data),
    }
    command = [sys.executable, "-m", "awslambdaric", "everloop_inference.aws_lambda.handler"]
    return subprocess.Popen(
        command, env=told, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def function(package: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LambdaRuntime]:
    with lambda_runtime() as runtime:
        process = start(package, runtime, tmp_path_factory.mktemp("data"))
        yield runtime
        process.kill()
        process.communicate()


def test_it_gives_the_golden_answers(package: Package, function: LambdaRuntime) -> None:
    golden = json.loads((package.folder / "golden.json").read_bytes())
    body = json.dumps({"rows": golden["rows"]})
    path = "/v1/models/flights:predict"
    for _ in range(2):
        answer = function.request("POST", path, body)
        assert (answer["statusCode"], answer["isBase64Encoded"]) == (200, False)
        assert answer["headers"]["content-type"] == "application/json"
        predicted = json.loads(answer["body"])
        found = [item["probabilities"] for item in predicted["predictions"]]
        np.testing.assert_allclose(found, golden["probabilities"], atol=1e-6)
        assert predicted["version"] == 3
    packed = base64.b64encode(body.encode()).decode()
    same = function.request("POST", path, packed, isBase64Encoded=True)
    again = [item["probabilities"] for item in json.loads(same["body"])["predictions"]]
    assert again == found


def test_every_path_of_the_platform_is_there(package: Package, function: LambdaRuntime) -> None:
    assert function.request("GET", "/v2/health/ready")["statusCode"] == 200
    described = json.loads(function.request("GET", "/v2/models/flights")["body"])
    assert (described["name"], described["versions"]) == ("flights", ["3"])
    assert "everloop_inference_served_version" in function.request("GET", "/metrics")["body"]
    golden = json.loads((package.folder / "golden.json").read_bytes())["rows"][:1]
    told = function.request("POST", "/v1/models/flights:explain", json.dumps({"rows": golden}))
    assert told["statusCode"] == 200


def test_mistakes_of_callers_are_answered_as_on_the_platform(function: LambdaRuntime) -> None:
    unknown = function.request("POST", "/v1/models/none:predict", '{"rows": [{}]}')
    assert (unknown["statusCode"], json.loads(unknown["body"])["reason"]) == (
        404,
        "MODEL_NOT_FOUND",
    )
    assert function.request("POST", "/v1/models/flights:predict", "{")["statusCode"] == 422
    assert function.request("DELETE", "/v2/models/flights")["statusCode"] == 405


def test_a_model_that_is_damaged_fails_the_start(tmp_path: Path) -> None:
    package = sample_package(tmp_path / "model")
    with (package.folder / "model.onnx").open("ab") as graph:
        graph.write(b"x")
    with lambda_runtime() as runtime:
        process = start(package, runtime, tmp_path / "data")
        kind, said = runtime.said.get(timeout=60)
        output, _ = process.communicate(timeout=30)
    assert (kind, process.returncode) == ("init/error", 1)
    assert "flights version 3 cannot serve" in said["errorMessage"]
    assert "CHECKSUM_MISMATCH" in output
