"""Each process exports what it measures, and no gauge of another that it never sets."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, PlatformCollector
from prometheus_client.parser import text_string_to_metric_families
from services.inference.tests.conftest import free_port

from everloop_inference.fakes import ROW, ask
from everloop_inference.metrics_gateway import MetricsGateway
from everloop_inference.metrics_push import MetricsPush
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import Stopper

LIST = """
import everloop_inference.{module}
from prometheus_client import REGISTRY
print(*(family.name for family in REGISTRY.collect()))
"""


@pytest.mark.parametrize(
    ("module", "own", "others"),
    [
        ("app", "data_plane_up", "registry_up"),
        ("placement.deployment", "registry_up", "data_plane_up"),
        ("replica", "registry_up", "data_plane_up"),
    ],
)
def test_a_process_exports_only_its_own_gauges(module: str, own: str, others: str) -> None:
    listed = subprocess.run(
        [sys.executable, "-c", LIST.format(module=module)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    assert f"everloop_inference_{own}" in listed
    assert f"everloop_inference_{others}" not in listed


class Scraped:
    """A service process's metrics server, with a clock that is set by hand."""

    def __init__(self, max_bytes: int = 100_000) -> None:
        self.now = 0.0
        self.own = CollectorRegistry()
        gateway = MetricsGateway(10.0, max_bytes, self.own, lambda: self.now)
        self.address = f"127.0.0.1:{free_port()}"
        self.server = MetricsServer(self.address, gateway)
        self.server.start(Stopper())

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
        connection = http.client.HTTPConnection(self.address, timeout=10)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def values(self, name: str) -> dict[tuple[tuple[str, str], ...], float]:
        status, text = self.ask("GET", "/metrics")
        assert status == 200
        assert text.count(f"# TYPE {name} ") <= 1
        return {
            tuple(sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name
        }


@pytest.fixture
def scraped() -> Iterator[Scraped]:
    scraped = Scraped()
    yield scraped
    scraped.server.stop()


def pushing(scraped: Scraped, seconds: float = 60.0, **labels: str) -> tuple[Counter, MetricsPush]:
    registry = CollectorRegistry()
    counter = Counter("answers", "Answers.", ["model"], registry=registry)
    return counter, MetricsPush(scraped.address, seconds, labels, registry)


def test_a_scrape_leaves_nothing_for_the_next_one(
    scraped: Scraped, until: Callable[..., None]
) -> None:
    PlatformCollector(registry=scraped.own)  # hands out the same families with every scrape
    registry = CollectorRegistry()
    PlatformCollector(registry=registry)
    push = MetricsPush(scraped.address, 60.0, {"replica": "one"}, registry)
    push.start()
    until(lambda: scraped.values("everloop_inference_replicas") == {(): 1})
    lines = [scraped.ask("GET", "/metrics")[1].count("python_info{") for _ in range(3)]
    assert lines == [2, 2, 2]
    push.stop()


def test_one_scrape_shows_every_replica(scraped: Scraped, until: Callable[..., None]) -> None:
    own = Counter("answers", "Answers.", ["model"], registry=scraped.own)
    own.labels("a").inc(7)
    first, push = pushing(scraped, replica="one")
    second, pool_push = pushing(scraped, replica="two", pool="sleepy")
    first.labels("a").inc(1)
    second.labels("sleepy").inc(2)
    for each in (push, pool_push):
        each.start()
    until(lambda: scraped.values("everloop_inference_replicas") == {(): 2})
    own_labels, first_labels = (("model", "a"),), (("model", "a"), ("replica", "one"))
    pool_labels = (("model", "sleepy"), ("pool", "sleepy"), ("replica", "two"))
    assert scraped.values("answers_total") == {own_labels: 7, first_labels: 1, pool_labels: 2}

    # What a replica has done is there when it has ended, until that is old.
    scraped.now = 6.0
    first.labels("a").inc(10)
    push.stop()
    pool_push._stopping.set()
    until(lambda: scraped.values("answers_total").get(first_labels) == 11)
    scraped.now = 12.0
    until(lambda: scraped.values("everloop_inference_replicas")[()] <= 2)
    assert scraped.values("answers_total")[first_labels] == 11
    scraped.now = 30.0
    assert scraped.values("answers_total") == {own_labels: 7}
    assert scraped.values("everloop_inference_replicas") == {(): 0}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/metrics/job/inference/replica/one", b"answers 1\n", 200),
        ("/metrics/job/inference/replica/one/pool/a", b"answers 1\n", 200),
        ("/metrics/job/inference/replica/one", b"answers\n1 1 1 1", 400),
        ("/metrics/job/inference/replica/one", b"\xff\xfe", 400),
        ("/metrics/job/inference/replica/one", b"answers 1\n" * 20_000, 413),
        ("/metrics/job/inference/replica", b"answers 1\n", 404),
        ("/metrics/job/inference/instance/one", b"answers 1\n", 404),
        ("/metrics/job/other/replica/one", b"answers 1\n", 404),
        ("/metrics", b"answers 1\n", 404),
    ],
)
def test_what_is_pushed_is_taken_or_refused(
    scraped: Scraped, path: str, body: bytes, status: int
) -> None:
    assert scraped.ask("PUT", path, body)[0] == status
    assert len(scraped.values("answers")) == (status == 200)


def test_a_caller_that_never_ends_its_body_is_cut_off(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    scraped.server.stop()
    monkeypatch.setattr("everloop_runtime.metrics.SILENCE", 0.2)
    scraped.server.start(Stopper())
    host, _, port = scraped.address.partition(":")
    for length in (b"-1", b"10"):
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            push = b"PUT /metrics/job/inference/replica/one HTTP/1.1\r\nContent-Length: %b\r\n\r\n"
            connection.sendall(push % length)
            answer = b"".join(iter(lambda: connection.recv(4096), b""))
        assert (b" 411 " in answer) == (length == b"-1")
    assert scraped.values("answers_total") == {}


def test_what_replicas_push_together_is_bounded(scraped: Scraped) -> None:
    body = b"answers 1\n" * 6000
    assert scraped.ask("PUT", "/metrics/job/inference/replica/one", body)[0] == 200
    assert scraped.ask("PUT", "/metrics/job/inference/replica/two", body)[0] == 413
    # The next push of the same replica takes the place of the one before, and what is old goes.
    assert scraped.ask("PUT", "/metrics/job/inference/replica/one", body)[0] == 200
    scraped.now = 11.0
    assert scraped.ask("PUT", "/metrics/job/inference/replica/two", body)[0] == 200


def test_a_replica_pushes_its_metrics(
    world: Any, scraped: Scraped, until: Callable[..., None]
) -> None:
    world.settings = world.settings.model_copy(
        update={"metrics_push_address": scraped.address, "metrics_push_seconds": 0.05}
    )
    world.publish(4)
    replica = world.replica()
    labels = (("model", "flights"), ("replica", replica.predictor._epoch))
    name = "everloop_inference_served_version"
    until(lambda: scraped.values(name).get(labels) == 4)
    ask(replica.predictor, [ROW])
    world.stop(replica)
    served = scraped.values("everloop_inference_log_served_rows_total")
    assert served[labels] == 1


def test_the_gateway_runs_by_itself_beside_the_replicas_of_a_pod(
    scraped: Scraped, until: Callable[..., None], tmp_path: Path
) -> None:
    scraped.address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "EVERLOOP_METRICS_ADDRESS": scraped.address,
        "EVERLOOP_DATA_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "everloop_inference.metrics_gateway"]
    counter, push = pushing(scraped, 0.1, replica="one")
    with subprocess.Popen(command, env=environment) as gateway:
        try:
            until(lambda: answers(scraped), 60)
            counter.labels("a").inc()
            push.start()
            until(lambda: scraped.values("answers_total"), 60)
        finally:
            push.stop()
            gateway.terminate()
        assert gateway.wait(30) == 0


def answers(scraped: Scraped) -> bool:
    try:
        return scraped.ask("GET", "/metrics")[0] == 200
    except OSError:
        return False


def test_a_service_process_that_is_away_costs_a_warning(
    world: Any, until: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    _, push = pushing(SimpleNamespace(address=f"127.0.0.1:{free_port()}"), 0.01, replica="one")  # type: ignore[arg-type]
    push.start()
    until(lambda: "metrics do not reach" in caplog.text)
    push.stop()
    assert caplog.text.count("metrics do not reach") == 1
