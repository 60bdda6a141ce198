"""Each service in its image: healthy, without rights, on a read-only root, and gone in time with nothing lost."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker
import pytest
from tests.containers.run import SERVICES, VERSION, Running, image, wait_healthy

from everloop import Everloop, EverloopError, stack
from everloop.push import Pushed
from everloop.stack.probes import grpc_serving

pytestmark = [pytest.mark.containers, pytest.mark.timeout(600)]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_lives_in_its_container(
    service: str, run: Callable[[str], Running], platform: stack.Endpoints
) -> None:
    running = run(service)
    grpc_serving(f"127.0.0.1:{platform.ports[service.removesuffix('_gateway')]}")
    assert running.run("id", "-u") == (0, "10001\n")
    assert running.run("touch", "/opt/everloop/x")[0] == 1
    assert "tini" in running.run("cat", "/proc/1/cmdline")[1]
    assert running.stop() == 0, running.container.logs()


def test_a_service_that_is_told_who_may_call_refuses_a_stranger(
    run: Callable[..., Running],
    platform: stack.Endpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callers = tmp_path / "callers.yaml"
    made = [sys.executable, "-m", "everloop.cli", "token", "ann", "--file", str(callers)]
    token = subprocess.run(made, capture_output=True, text=True, check=True).stdout.split()[-1]
    tmp_path.chmod(0o755)
    callers.chmod(0o644)
    run("registry_gateway", callers)
    for known in (False, True):
        if known:
            monkeypatch.setenv("EVERLOOP_TOKEN", token)
        with Everloop.connect(Path(platform.home)) as everloop:
            if known:
                everloop.models()
            else:
                with pytest.raises(EverloopError) as refused:
                    everloop.models()
                assert refused.value.reason == "TOKEN_MISSING"


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_says_what_is_in_it(service: str, engine: docker.DockerClient) -> None:
    found = engine.images.get(image(service))
    assert found.labels["org.opencontainers.image.version"] == VERSION
    title = f"everloop-{service.replace('_', '-')}"
    assert found.labels["org.opencontainers.image.title"] == title
    container = engine.containers.create(image(service))
    try:
        chunks, _ = container.get_archive(found.labels["org.cyclonedx.sbom"])
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            listed = archive.extractfile("sbom.json")
            assert listed
            components = json.load(listed)["components"]
    finally:
        container.remove()
    names = {part["name"] for part in components}
    assert {"grpcio", title} <= names
    assert ("torch" in names) == (service == "trainer")
    assert not names & {"pytest", "mypy", "ruff", "everloop"}


def test_ingest_keeps_what_it_acknowledged(
    run: Callable[[str], Running], platform: stack.Endpoints
) -> None:
    ingest = run("ingest")
    pushed, began = Pushed(), threading.Event()

    def push() -> None:
        with pytest.raises(EverloopError):
            everloop.push(
                *("flight-delays", flights()),
                patience=0,
                on_batch=lambda _: began.set(),
                result=pushed,
            )

    with Everloop.connect(Path(platform.home)) as everloop, ThreadPoolExecutor(1) as pool:
        pushing = pool.submit(push)
        assert began.wait(30)
        assert ingest.stop() == 0
        pushing.result()
        assert pushed.accepted > 0 and not pushed.rejected

        ingest.container.start()
        wait_healthy(ingest.container)
        deadline = time.monotonic() + 60
        while (stats := everloop.stats("flight-delays")).accepted < pushed.accepted or stats.lag:
            assert time.monotonic() < deadline, (stats, pushed)
            time.sleep(0.2)
        # The batch that was under way may have no answer and be in.
        assert stats.accepted - pushed.accepted in (0, 500)


def flights() -> Iterator[dict[str, object]]:
    """Endless, and nobody looks at them."""
    for number in itertools.count():
        yield {
            "flight_id": str(number),
            "scheduled_departure": "2013-06-01T05:15:00-04:00",
            "carrier": "UA",
            "origin": "EWR",
            "destination": "IAH",
            "distance": 1400,
        }
