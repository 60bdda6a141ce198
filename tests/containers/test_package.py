"""A packaged model in its images: healthy, without rights, on a read-only root, and right."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
import httpx
import numpy as np
import pytest
from services.inference.tests.conftest import free_ports
from services.inference.tests.lambda_runtime import lambda_runtime
from services.inference.tests.test_packaged import sample_package
from testcontainers.core.container import DockerContainer
from tests.containers.run import GRACE_SECONDS, state, wait_healthy

from everloop.package import Target, dockerfile, task_definition
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion

pytestmark = [pytest.mark.containers, pytest.mark.timeout(300)]
TAG = "everloop-test-package:3"


@pytest.fixture(params=[Target.CONTAINER])
def context(
    engine: docker.DockerClient, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Path]:
    version = ModelVersion(model="flights", version=3, run_id="a-run")
    (tmp_path / "Dockerfile").write_text(dockerfile(version, request.param))
    sample_package(tmp_path / "model")
    subprocess.run(["docker", "build", "--tag", TAG, str(tmp_path)], check=True)
    yield tmp_path
    engine.images.remove(TAG, force=True)


def test_what_a_task_mounts_is_the_users_of_the_image(
    context: Path, engine: docker.DockerClient
) -> None:
    (task,) = task_definition(ModelVersion(model="flights", version=3))["containerDefinitions"]
    mounted = {point["containerPath"] for point in task["mountPoints"]}
    assert mounted == set(engine.images.get(TAG).attrs["Config"]["Volumes"])


def test_a_packaged_model_gives_its_golden_answers(context: Path) -> None:
    golden = json.loads((context / "model/golden.json").read_bytes())
    http, rpc = (f"127.0.0.1:{port}" for port in free_ports(2))
    described = DockerContainer(TAG).with_tmpfs_mount("/tmp")
    described.with_tmpfs_mount("/var/lib/everloop", "uid=10001")
    described.with_envs(EVERLOOP_HTTP_ADDRESS=http, EVERLOOP_PREDICT_GRPC_ADDRESS=rpc)
    described.with_kwargs(network_mode="host", read_only=True, cap_drop=["ALL"])
    with described:
        container = described.get_wrapped_container()
        wait_healthy(container)
        path = f"http://{http}/v1/models/flights:predict"
        asked = httpx.post(path, json={"rows": golden["rows"]}, trust_env=False)
        answers = [item["probabilities"] for item in asked.raise_for_status().json()["predictions"]]
        np.testing.assert_allclose(answers, golden["probabilities"], atol=1e-6)
        container.stop(timeout=GRACE_SECONDS)
        assert state(container)["ExitCode"] == 0, container.logs()


@pytest.mark.parametrize("context", [Target.LAMBDA], indirect=True)
def test_a_function_gives_its_golden_answers(context: Path) -> None:
    golden = json.loads((context / "model/golden.json").read_bytes())
    described = DockerContainer(TAG).with_tmpfs_mount("/tmp")
    described.with_kwargs(network_mode="host", read_only=True, cap_drop=["ALL"], user="993:990")
    with lambda_runtime() as runtime:
        described.with_envs(AWS_LAMBDA_RUNTIME_API=runtime.address)
        with described:
            body = json.dumps({"rows": golden["rows"]})
            asked = runtime.request("POST", "/v1/models/flights:predict", body)
    answers = [item["probabilities"] for item in json.loads(asked["body"])["predictions"]]
    np.testing.assert_allclose(answers, golden["probabilities"], atol=1e-6)
