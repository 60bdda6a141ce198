"""A packaged model answers as the platform does, and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from demo_run import Run

from everloop import Addresses, Everloop
from everloop.stack import ports
from everloop.stack.home import Home

pytestmark = pytest.mark.e2e


def test_a_packaged_model_answers_as_the_platform(run: Run, tmp_path: Path) -> None:
    model = run.package / "model"
    home = Home.at(tmp_path)
    home.create()
    at = {name: f"127.0.0.1:{port}" for name, port in ports.choose(home).items()}
    told = {
        **os.environ,
        "EVERLOOP_MODEL_DIR": str(model),
        "EVERLOOP_DATA_DIR": str(tmp_path / "data"),
        "EVERLOOP_HTTP_ADDRESS": at["inference_http"],
        "EVERLOOP_PREDICT_GRPC_ADDRESS": at["inference_grpc"],
    }
    server = subprocess.Popen([sys.executable, "-m", "everloop_inference.packaged"], env=told)
    try:
        with grpc.insecure_channel(at["inference_grpc"]) as channel:
            grpc.channel_ready_future(channel).result(60)
        nobody = dict.fromkeys(("ingest", "trainer", "registry", "monitor"), "127.0.0.1:1")
        url = f"http://{at['inference_http']}"
        places = Addresses(**nobody, inference_http_url=url, inference_grpc=at["inference_grpc"])
        rows = json.loads((model / "golden.json").read_bytes())["rows"]
        with Everloop.connect(addresses=places) as everloop:
            for http in (False, True):
                answer = everloop.predict("flight-delays", rows, http=http)
                assert [item.score for item in answer.predictions] == run.golden
    finally:
        server.terminate()
        ports.release(home)
    assert server.wait(30) == 0


def test_its_context_is_complete(run: Run) -> None:
    version = json.loads((run.package / "model/version.json").read_bytes())
    assert "COPY model /opt/model" in (run.package / "Dockerfile").read_text()
    task = json.loads((run.package / "task-definition.json").read_bytes())
    assert task["containerDefinitions"][0]["image"] == f"flight-delays:{version['version']}"
