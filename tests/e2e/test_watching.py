"""What people see: dashboards whose panels show something, and an alert that reaches somebody."""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from bench.inference.running import free_port
from demo_run import Run
from kafka import KafkaProducer

from everloop import stack
from everloop.stack.parts import prometheus
from everloop_contracts.events import TRAININGS

ALERTMANAGER = shutil.which("alertmanager") or shutil.which("prometheus-alertmanager")
WAIT_SECONDS = 90

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not prometheus.installed(), reason="no prometheus: apt-get install prometheus"
    ),
]


def test_every_panel_shows_something_once_the_loop_has_closed(run: Run) -> None:
    assert [query for query, series in run.series.items() if not series] == []
    assert len(run.series) > 40


@pytest.mark.skipif(
    ALERTMANAGER is None, reason="no alertmanager: apt-get install prometheus-alertmanager"
)
def test_an_event_nobody_could_take_reaches_the_person_on_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with _webhook() as (received, url), _alertmanager(tmp_path, url) as address:
        monkeypatch.setenv("EVERLOOP_ALERTMANAGER", address)
        try:
            there = stack.up(home, only=("registry_gateway", "prometheus"))
            producer = KafkaProducer(bootstrap_servers=there.kafka_bootstrap)
            producer.send(TRAININGS, b"no event").get(timeout=30)
            producer.close()
            alert = received.get(timeout=WAIT_SECONDS)
            while (
                alert["labels"]["alertname"] == "EverloopDown"
            ):  # of services that do not run here
                alert = received.get(timeout=WAIT_SECONDS)
        finally:
            stack.down(home)
    assert alert["status"] == "firing"
    assert alert["labels"]["alertname"] == "EverloopEventsDeadLettered"
    assert alert["labels"]["job"] == "everloop-registry"
    assert alert["annotations"]["runbook"].startswith("docs/operations.md#")


@contextmanager
def _webhook() -> Iterator[tuple[queue.SimpleQueue[dict[str, Any]], str]]:
    """Somebody's pager."""
    received: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    class Pager(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            for alert in json.loads(body)["alerts"]:
                received.put(alert)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Pager) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield received, f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _alertmanager(folder: Path, webhook: str) -> Iterator[str]:
    configuration = folder / "alertmanager.yml"
    receiver = {"name": "pager", "webhook_configs": [{"url": webhook}]}
    route = {"receiver": "pager", "group_by": ["alertname"], "group_wait": "0s"}
    configuration.write_text(json.dumps({"route": route, "receivers": [receiver]}))
    address = f"127.0.0.1:{free_port()}"
    assert ALERTMANAGER is not None
    process = subprocess.Popen(
        [
            ALERTMANAGER,
            f"--config.file={configuration}",
            f"--storage.path={folder / 'alertmanager'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        process.terminate()
        process.wait(timeout=30)
