"""A replica that is told to stop does so in time, whatever its callers do, and writes its log out."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_inference.fakes import ROW
from everloop_inference.listeners import STOP_SECONDS
from everloop_inference.placement.deployment import application
from everloop_inference.settings import InferenceSettings

DRAIN_SECONDS = 4.0


def test_callers_of_both_doors_that_stay_share_one_deadline(world: Any) -> None:
    world.publish(1)
    world.settings = world.settings.model_copy(
        update={"drain_seconds": DRAIN_SECONDS, "log_batch_seconds": 60.0}
    )
    replica = world.replica()
    asked = http.client.HTTPConnection(world.settings.http_address, timeout=10)
    asked.request("POST", "/v1/models/flights:predict", json.dumps({"rows": [ROW]}))
    assert asked.getresponse().status == 200
    asked.close()
    host, _, port = world.settings.http_address.rpartition(":")
    finished = threading.Event()

    def nothing() -> Iterator[native.PredictStreamRequest]:
        finished.wait(60)
        yield from ()

    with (
        socket.create_connection((host, int(port))) as half,
        grpc.insecure_channel(world.settings.predict_grpc_address) as channel,
    ):
        half.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
        grpc.channel_ready_future(channel).result(10)
        stream = native_grpc.InferenceServiceStub(channel).PredictStream(nothing())
        try:
            began = time.monotonic()
            world.stop(replica)
            took = time.monotonic() - began
        finally:
            finished.set()
            stream.cancel()
    assert DRAIN_SECONDS < took < DRAIN_SECONDS + 3.0  # a second time would be 4
    books = replica.log.books.counts("flights")
    assert (books.served, books.logged) == (1, 1)


def test_ray_waits_until_the_log_is_written(tmp_path: Path) -> None:
    settings = InferenceSettings(data_dir=tmp_path, drain_seconds=7.0, log_send_seconds=30.0)
    deployment: Any = application(settings, {}, "mark")._bound_deployment
    allowed = deployment._deployment_config.graceful_shutdown_timeout_s
    assert allowed > 7.0 + STOP_SECONDS + 2 * 30.0
