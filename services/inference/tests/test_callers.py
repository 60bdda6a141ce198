"""Who may ask for predictions, at every door."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from grpc_health.v1 import health_pb2, health_pb2_grpc
from libs.everloop_runtime.tests.who_may_call import entry, refusal
from starlette.requests import Request

from everloop_contracts.grpc_client import channel
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.fakes import ROW
from everloop_inference.grpc_errors import failure
from everloop_inference.http import routes
from everloop_inference.metrics import ERRORS
from everloop_inference.placement import ingress as module
from everloop_inference.placement.ingress import RayIngress
from everloop_inference.ports import HttpReply, RpcReply
from everloop_runtime import callers

both_servers = pytest.mark.parametrize("world", ["native", "grpcio"], indirect=True)
PREDICT = "/v1/models/flights:predict"
REFUSED = [
    ("", 401, "TOKEN_MISSING"),
    ("nobody's", 401, "TOKEN_UNKNOWN"),
    ("ann's", 403, "CALLER_DENIED"),
]


@pytest.fixture
def guarded(world: Any, tmp_path: Path) -> Any:
    file = tmp_path / "callers.yaml"
    file.write_text(
        "callers:\n" + entry("shop", "shop's", "inference") + entry("ann", "ann's", "trainer")
    )
    world.settings = world.settings.model_copy(update={"callers_file": file})
    world.publish(1)
    world.replica()
    return world


def ask(world: Any, method: str, path: str, token: str, body: bytes = b"") -> Any:
    connection = http.client.HTTPConnection(world.settings.http_address, timeout=10)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    connection.request(method, path, body or None, headers)
    answer = connection.getresponse()
    answer.document = json.loads(answer.read())  # type: ignore[attr-defined]
    connection.close()
    return answer


def rows() -> native.PredictRequest:
    row = Struct()
    row.update(ROW)
    return native.PredictRequest(model="flights", rows=[row])


def test_over_http_a_token_opens(guarded):
    body = json.dumps({"rows": [ROW]}).encode()
    assert ask(guarded, "POST", PREDICT, "shop's", body).status == 200
    assert ask(guarded, "GET", "/v2/models/flights", "shop's").status == 200


@pytest.mark.parametrize(("token", "status", "reason"), REFUSED)
def test_over_http_nothing_is_answered_without_one(guarded, token, status, reason):
    # Far larger than what is read at once: what was not read must not be taken for the next request.
    body = json.dumps({"rows": [ROW] * 1000}).encode()
    for method, path, sent in (
        ("POST", PREDICT, body),
        ("POST", "/v2/models/flights/infer", body),
        ("GET", "/v2/models/flights", b""),
        ("GET", "/v1/models", b""),
        ("GET", "/metrics", b""),
        ("GET", "/nowhere", b""),
    ):
        answer = ask(guarded, method, path, token, sent)
        assert (answer.status, answer.document["reason"]) == (status, reason), path
        assert answer.getheader("connection") == "close"
        assert (answer.getheader("www-authenticate") == "Bearer") == (status == 401)
    assert [
        ask(guarded, "GET", path, token).status
        for path in ("/v2/health/live", "/v2/health/ready", "/v2", "/openapi.json")
    ] == [200] * 4


@both_servers
def test_over_grpc_a_token_opens(guarded):
    with channel(guarded.settings.predict_grpc_address, "shop's") as connection:
        stub = native_grpc.InferenceServiceStub(connection)
        assert len(stub.Predict(rows(), timeout=10).predictions) == 1
        requests = [native.PredictStreamRequest(id=str(i), request=rows()) for i in range(3)]
        answers = list(stub.PredictStream(iter(requests), timeout=10))
        assert {answer.id for answer in answers if answer.HasField("response")} == {"0", "1", "2"}
        tensors = oip_grpc.GRPCInferenceServiceStub(connection)
        assert tensors.ModelReady(oip.ModelReadyRequest(name="flights"), timeout=10).ready


@both_servers
def test_a_stream_ends_when_its_callers_token_is_taken_back(guarded, monkeypatch):
    monkeypatch.setattr(callers, "_LOOK_SECONDS", 0.0)
    taken = threading.Event()

    def requests():
        yield native.PredictStreamRequest(id="1", request=rows())
        assert taken.wait(10)
        yield native.PredictStreamRequest(id="2", request=rows())

    with channel(guarded.settings.predict_grpc_address, "shop's") as connection:
        answers = native_grpc.InferenceServiceStub(connection).PredictStream(requests(), timeout=10)
        assert next(answers).id == "1"
        guarded.settings.callers_file.write_text("callers: []\n")
        taken.set()
        assert refusal(lambda: next(answers)) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_UNKNOWN",
        )


def test_refusals_are_counted(guarded):
    def counted(door: str) -> float:
        return float(ERRORS.labels(door, "TOKEN_MISSING")._value.get())

    before = {door: counted(door) for door in ("http", "http-oip", "grpc")}
    ask(guarded, "POST", PREDICT, "", b"{}")
    ask(guarded, "POST", "/v2/models/flights/infer", "", b"{}")
    with channel(guarded.settings.predict_grpc_address) as connection, pytest.raises(grpc.RpcError):
        native_grpc.InferenceServiceStub(connection).Predict(rows(), timeout=10)
    assert {door: counted(door) - value for door, value in before.items()} == dict.fromkeys(
        before, 1.0
    )


def test_long_paths_are_not_remembered():
    """Anybody may ask for anything, and each path would be kept."""
    kept = routes._remembered.cache_info().currsize
    assert routes.route("/v1/models/" + "x" * routes.LONGEST).model == "x" * routes.LONGEST
    assert routes._remembered.cache_info().currsize == kept


@both_servers
@pytest.mark.parametrize(("token", "status", "reason"), REFUSED)
def test_over_grpc_nothing_is_answered_without_one(guarded, token, status, reason):
    code = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}[status]
    with channel(guarded.settings.predict_grpc_address, token) as connection:
        stub = native_grpc.InferenceServiceStub(connection)
        tensors = oip_grpc.GRPCInferenceServiceStub(connection)
        stream = iter([native.PredictStreamRequest(id="1", request=rows())])
        for call in (
            lambda: stub.Predict(rows(), timeout=10),
            lambda: stub.GetModel(native.GetModelRequest(model="flights"), timeout=10),
            lambda: list(stub.PredictStream(stream, timeout=10)),
            lambda: tensors.ModelInfer(oip.ModelInferRequest(model_name="flights"), timeout=10),
            lambda: tensors.ModelReady(oip.ModelReadyRequest(name="flights"), timeout=10),
        ):
            assert refusal(call) == (code, reason)
        assert tensors.ServerLive(oip.ServerLiveRequest(), timeout=10).live
        health: Any = health_pb2_grpc.HealthStub(connection)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status


class Replicas:
    """What Ray's proxies lead to, which answers everything."""

    async def http(self, request):
        return HttpReply(200, (), b"{}")

    async def rpc(self, request):
        return RpcReply(b"")


class Proxied:
    """What Ray's gRPC proxy tells of a call."""

    def __init__(self, *metadata):
        self._metadata = metadata

    def invocation_metadata(self):
        return self._metadata


def request(token: str) -> Request:
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []

    async def receive():
        return {"type": "http.request", "body": b""}

    return Request(
        {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}, receive
    )


@pytest.mark.parametrize(("token", "status", "reason"), [("shop's", 200, ""), *REFUSED])
def test_rays_own_proxies_ask_too(guarded, monkeypatch, token, status, reason):
    monkeypatch.setattr(module, "ServeHandle", lambda handle: handle)
    ingress = RayIngress(Replicas(), "mark", 4, guarded.settings.callers_file)
    answer = asyncio.run(ingress(request(token)))
    assert answer.status_code == status
    assert json.loads(bytes(answer.body)).get("reason", "") == reason
    path, sent = "/everloop.inference.v1.InferenceService/Predict", rows()
    context = Proxied(("authorization", f"Bearer {token}")) if token else Proxied()
    reply = asyncio.run(ingress.replied(path, sent, context))
    assert (failure(reply).reason if reply.code else "") == reason
    # Whoever has a deployment handle is in the cluster already.
    assert asyncio.run(ingress.replied(path, sent, None)).code == 0
