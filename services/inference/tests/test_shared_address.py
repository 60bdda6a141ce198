"""Replicas share an address: one may go at any time, and nobody who connects finds a closed door."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from typing import Any

import pytest
from services.inference.tests.conftest import free_port

from everloop_inference.addresses import accepted, bound

STOPS = 10

# A process of its own: its threads would keep the replica from closing its door at once.
CALLERS = """
import collections, http.client, json, sys, threading
import grpc
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_inference.fakes import ROW

stop, told = threading.Event(), collections.Counter()
body = json.dumps({"rows": [ROW]})
request = native.PredictRequest(model="flights")
request.rows.add().update(ROW)

def over_http():
    connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
    try:
        connection.request("POST", "/v1/models/flights:predict", body)
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()

def over_grpc():
    with grpc.insecure_channel(sys.argv[2], [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            native_grpc.InferenceServiceStub(channel).Predict(request, timeout=30)
            return "200"
        except grpc.RpcError as error:
            return error.details()

def ask_on(ask):
    while not stop.is_set():
        told[ask.__name__, ask()] += 1

threads = [threading.Thread(target=ask_on, args=[ask]) for ask in (over_http, over_grpc) * 2]
for thread in threads:
    thread.start()
print("asking", flush=True)
sys.stdin.read()
stop.set()
for thread in threads:
    thread.join()
print(json.dumps([[*what, count] for what, count in told.items()]))
"""


def test_a_replica_that_stops_resets_nobody(one_process: None, world: Any) -> None:
    world.publish(1)
    addresses = (world.settings.http_address, world.settings.predict_grpc_address)
    old = world.replica()
    with subprocess.Popen(
        [sys.executable, "-c", CALLERS, *addresses],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as callers:
        assert callers.stdout and callers.stdout.readline() == "asking\n"
        for _ in range(STOPS):
            new = world.replica()
            world.stop(old)
            old = new
        told = json.loads(callers.communicate("", timeout=60)[0])
    print(told)
    answered = {door: count for door, told_it, count in told if told_it == "200"}
    assert set(answered) == {"over_http", "over_grpc"}
    # Between the last connection accepted and the door closed lies a moment, longer where all replicas share one
    # interpreter. Doors that are just closed reset five and more.
    assert sum(count for _, _, count in told) - sum(answered.values()) <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a socket hear nothing")
def test_who_connects_while_a_door_closes_is_heard_at_the_next_one() -> None:
    address = f"127.0.0.1:{free_port()}"
    host, _, port = address.partition(":")
    closing = bound(address)
    closing.listen()
    with socket.create_connection((host, int(port)), timeout=10) as early:
        (waiting,) = accepted(closing)
        with socket.socket() as late, bound(address) as other, waiting:
            late.setblocking(False)
            late.connect_ex((host, int(port)))
            other.settimeout(10)
            other.listen()
            closing.close()
            answering, _ = other.accept()
            with answering:
                answering.sendall(b"late")
                late.settimeout(10)
                assert late.recv(4) == b"late"
            waiting.sendall(b"early")
            assert early.recv(5) == b"early"
