from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.errors import DockerException
from tests.containers.run import Running, wait_healthy

from everloop import stack

Run = Callable[..., Running]


@pytest.fixture(scope="session")
def engine() -> Iterator[docker.DockerClient]:
    # testcontainers would start a container of its own that removes the others, from an image of a public registry.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    try:
        client = docker.from_env()
        client.ping()
    except DockerException as error:
        pytest.skip(f"no container engine: {error}")
    yield client
    client.close()


@pytest.fixture(scope="session")
def platform(engine: docker.DockerClient) -> Iterator[stack.Endpoints]:
    """Kafka, S3 and MLflow as processes on this machine; the services are to be containers."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        try:
            yield stack.up(home, only=["kafka", "s3", "mlflow"])
        finally:
            stack.down(home)


@pytest.fixture
def run(engine: docker.DockerClient, platform: stack.Endpoints) -> Iterator[Run]:
    """Starts a service in its container and returns when it is healthy; all of them are removed afterwards."""
    started: list[Running] = []

    def start(service: str, callers: Path | None = None) -> Running:
        running = Running.start(service, platform, callers)
        started.append(running)
        wait_healthy(running.container)
        return running

    yield start
    for running in reversed(started):
        running.remove()
