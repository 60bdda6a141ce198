"""A packaged model that serves by itself, for the time of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from everloop import Addresses, Everloop
from everloop.stack import ports
from everloop.stack.home import Home

__all__ = ["serving"]


@contextmanager
def serving(model: Path, folder: Path) -> Iterator[Everloop]:
    """Starts the model server on a folder with a model and connects to it; it must stop in peace in the end."""
    home = Home.at(folder)
    home.create()
    at = {name: f"127.0.0.1:{port}" for name, port in ports.choose(home).items()}
    told = {
        **os.environ,
        "EVERLOOP_MODEL_DIR": str(model),
        "EVERLOOP_DATA_DIR": str(folder / "data"),
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
        with Everloop.connect(addresses=places) as everloop:
            yield everloop
    finally:
        server.terminate()
        ports.release(home)
    assert server.wait(30) == 0
