"""One suite for whatever keeps reference samples: the fake, and MLflow with its store on a file."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from everloop_monitor.adapters.mlflow import MlflowReferences
from everloop_monitor.fakes import FakeReferences
from everloop_runtime.errors import EverloopError, Kind

SAMPLE = b"PAR1 bytes PAR1"


@pytest.fixture(scope="module", params=["fake", pytest.param("mlflow", marks=pytest.mark.slow)])
def kept(request, tmp_path_factory):
    """References, the run that has a sample, and a run that has none."""
    if request.param == "fake":
        return FakeReferences({"with": SAMPLE}), "with", "without"
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=str(folder / "artifacts"))
    one, two = (client.create_run(experiment).info.run_id for _ in range(2))
    sample = folder / "reference.parquet"
    sample.write_bytes(SAMPLE)
    client.log_artifact(one, str(sample), "everloop")
    return MlflowReferences(uri, timeout_seconds=2), one, two


def test_a_sample_is_loaded(kept):
    references, run, _ = kept
    assert references.load(run) == SAMPLE


def test_a_run_without_a_sample_is_not_found(kept):
    references, _, empty = kept
    with pytest.raises(EverloopError) as caught:
        references.load(empty)
    assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, "REFERENCE_NOT_FOUND")


def test_an_unknown_run_is_not_found(kept):
    references, _, _ = kept
    with pytest.raises(EverloopError) as caught:
        references.load("0" * 32)
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.slow
def test_a_server_that_is_away_is_unavailable_soon():
    references = MlflowReferences("http://127.0.0.1:9", timeout_seconds=1)
    began = time.monotonic()
    with pytest.raises(EverloopError) as caught:
        references.load("0" * 32)
    assert caught.value.kind is Kind.UNAVAILABLE
    assert time.monotonic() - began < 30


class _Server(BaseHTTPRequestHandler):
    """An MLflow server that knows the run `r`, and fails like the real one when a file cannot be had."""

    files: ClassVar[list[dict[str, object]]] = []

    def do_GET(self):
        run = {"info": {"run_id": "r", "artifact_uri": "mlflow-artifacts:/1/r/artifacts"}}
        answers = {
            "/api/2.0/mlflow/runs/get": {"run": run},
            "/api/2.0/mlflow-artifacts/artifacts": {"files": self.files},
        }
        answer = answers.get(self.path.partition("?")[0])
        body = json.dumps(answer or {}).encode()
        self.send_response(500 if answer is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ([], Kind.NOT_FOUND),
        ([{"path": "reference.parquet", "is_dir": False, "file_size": 9}], Kind.UNAVAILABLE),
    ],
    ids=["the file is not there", "the object store is away"],
)
def test_a_sample_that_is_not_there_is_no_outage_and_an_outage_is_one(monkeypatch, files, kind):
    monkeypatch.setattr(_Server, "files", files)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        references = MlflowReferences(f"http://127.0.0.1:{server.server_port}", timeout_seconds=2)
        with pytest.raises(EverloopError) as caught:
            references.load("r")
        server.shutdown()
        thread.join()
    assert caught.value.kind is kind
