"""What MLflow's client raises, with a server that answers what the test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.mlflow_errors import translated

pytestmark = [
    pytest.mark.slow,  # MLflow's import
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Server(ThreadingHTTPServer):
    """Answers every request with one status; below 0 it hangs up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = 200
        self.code = "INTERNAL_ERROR"
        self.lists = False  # whether it lists files all the same

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert isinstance(self.server, Server)
        if self.server.status < 0:
            self.close_connection = True
            return
        body = json.dumps({"error_code": self.server.code, "message": "told to"}).encode()
        listed = self.server.lists and "?path=" in self.path
        self.send_response(200 if listed else self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(uri: str) -> None:
    from mlflow import MlflowClient

    with translated():
        MlflowClient(uri).get_run("r")


def fetch(uri: str) -> None:
    from mlflow.artifacts import download_artifacts

    with translated(files=True):
        download_artifacts("mlflow-artifacts:/1/r/artifacts/manifest.json", tracking_uri=uri)


def store(uri: str, folder: Path) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    (folder / "manifest.json").write_text("{}")
    with translated(files=True):
        get_artifact_repository("mlflow-artifacts:/1/r/artifacts", uri).log_artifacts(str(folder))


@pytest.fixture(params=["ask", "fetch", "store"])
def transfer(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Callable[[], None]:
    return {
        "ask": lambda: ask(server.uri),
        "fetch": lambda: fetch(server.uri),
        "store": lambda: store(server.uri, tmp_path),
    }[str(request.param)]


def kind_of(action: Callable[[], None]) -> Kind:
    with pytest.raises(EverloopError) as caught:
        action()
    return caught.value.kind


@pytest.mark.parametrize("status", [-1, 408, 429, 502, 503, 504])
def test_a_server_that_is_away_or_overloaded_is_unavailable(server, transfer, status):
    server.status = status
    assert kind_of(transfer) is Kind.UNAVAILABLE


def test_a_server_that_is_gone_is_unavailable(server, transfer):
    server.shutdown()
    server.server_close()
    assert kind_of(transfer) is Kind.UNAVAILABLE


def test_a_server_error_is_an_outage_only_where_files_are_transferred(
    server, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    server.status = 500
    assert kind_of(lambda: ask(server.uri)) is Kind.INTERNAL
    assert kind_of(lambda: fetch(server.uri)) is Kind.UNAVAILABLE
    assert kind_of(lambda: store(server.uri, tmp_path)) is Kind.UNAVAILABLE
    server.lists = True
    assert kind_of(lambda: fetch(server.uri)) is Kind.UNAVAILABLE


def test_what_is_not_there_is_not_found_and_a_refusal_is_no_outage(server):
    server.status, server.code = 404, "RESOURCE_DOES_NOT_EXIST"
    assert kind_of(lambda: ask(server.uri)) is Kind.NOT_FOUND
    server.status, server.code = 400, "INVALID_PARAMETER_VALUE"
    assert kind_of(lambda: ask(server.uri)) is Kind.INTERNAL


def test_other_errors_pass_as_they_are():
    with pytest.raises(ZeroDivisionError), translated():
        raise ZeroDivisionError
