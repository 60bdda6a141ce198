"""Ray's own ways in: its HTTP and gRPC proxies, and a deployment handle. Off unless a setting turns them on.

An application of its own stands there, whose name and route stay when the application with the replicas is replaced by
the next. It hands every request to a replica, where it is answered like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from ray import serve
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response

from everloop_contracts.services import Service
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_inference import stream
from everloop_inference.adapters.serve_handle import ServeHandle
from everloop_inference.callers import check_http, check_rpc
from everloop_inference.grpc_errors import failure, replied
from everloop_inference.http.app import refusal
from everloop_inference.ports import Elsewhere, HttpReply, HttpRequest, Lost, RpcReply, RpcRequest
from everloop_inference.protocols import native_proto
from everloop_runtime.callers import Callers
from everloop_runtime.errors import CODES, INTERNAL, EverloopError, Kind

__all__ = ["SERVICERS", "RayIngress", "application"]

SERVICERS = [
    "everloop_contracts.stubs.everloop.inference.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server",
    "everloop_contracts.stubs.inference.grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server",
]
"""What Ray Serve's gRPC proxy answers."""

log = logging.getLogger(__name__)

_LOST = EverloopError(
    Kind.UNAVAILABLE, "REPLICA_UNAVAILABLE", "no replica answered, try again"
).after(1.0)


Rpc = Callable[..., Awaitable[Any]]


def _rpc(service: str, name: str, answer: type[Message]) -> Rpc:
    async def method(
        self: RayIngress, request: Message, grpc_context: RayServegRPCContext | None = None
    ) -> Message:
        """Answers a request, or raises EverloopError; Ray's proxy is told the status instead."""
        reply = await self.replied(f"/{service}/{name}", request, grpc_context)
        if reply.code:
            if grpc_context is None:
                raise failure(reply)
            grpc_context.set_code(CODES[reply.code])
            grpc_context.set_details(reply.details)
            grpc_context.set_trailing_metadata(list(reply.metadata))
            return answer()
        response = answer()
        response.ParseFromString(reply.message)
        return response

    method.__name__ = name
    return method


_NATIVE = "everloop.inference.v1.InferenceService"
_OIP = "inference.GRPCInferenceService"


class RayIngress:
    """Every method under its own name, and HTTP as what is called."""

    Predict = _rpc(_NATIVE, "Predict", native.PredictResponse)
    Explain = _rpc(_NATIVE, "Explain", native.ExplainResponse)
    GetModel = _rpc(_NATIVE, "GetModel", native.GetModelResponse)
    ServerLive = _rpc(_OIP, "ServerLive", oip.ServerLiveResponse)
    ServerReady = _rpc(_OIP, "ServerReady", oip.ServerReadyResponse)
    ModelReady = _rpc(_OIP, "ModelReady", oip.ModelReadyResponse)
    ServerMetadata = _rpc(_OIP, "ServerMetadata", oip.ServerMetadataResponse)
    ModelMetadata = _rpc(_OIP, "ModelMetadata", oip.ModelMetadataResponse)
    RepositoryIndex = _rpc(_OIP, "RepositoryIndex", oip.RepositoryIndexResponse)
    ModelInfer = _rpc(_OIP, "ModelInfer", oip.ModelInferResponse)

    def __init__(
        self,
        replicas: DeploymentHandle[Any],
        mark: str,
        stream_requests: int,
        callers_file: Path | None,
    ) -> None:
        """Takes what it leads to, and who may come.

        Args:
            replicas: the handle of the replicas.
            mark: their fingerprint.
            stream_requests: how many requests of a stream they get at once.
            callers_file: who may come through Ray's proxies; whoever has a handle is in the cluster already.
        """
        self._callers = Callers(callers_file, Service.INFERENCE) if callers_file else None
        self.replicas: Elsewhere = ServeHandle(replicas)
        self._mark = mark
        self._stream_requests = stream_requests

    async def PredictStream(
        self,
        requests: AsyncIterable[native.PredictStreamRequest]
        | Iterable[native.PredictStreamRequest],
        grpc_context: RayServegRPCContext | None = None,
    ) -> AsyncIterator[native.PredictStreamResponse]:
        """Predicts rows, request after request: those of Ray's proxy, or a handle's list."""

        async def predict(request: native.PredictStreamRequest) -> native.PredictStreamResponse:
            try:
                reply = await self.replied(f"/{_NATIVE}/Predict", request.request, grpc_context)
            except Exception:
                log.exception("a request of a stream failed")
                return native_proto.refused(request.id, INTERNAL)
            if reply.code:
                return native_proto.refused(request.id, failure(reply))
            response = native.PredictResponse.FromString(reply.message)
            return native.PredictStreamResponse(id=request.id, response=response)

        def begin(
            request: native.PredictStreamRequest,
            respond: Callable[[native.PredictStreamResponse], None],
        ) -> asyncio.Future[native.PredictStreamResponse]:
            def done(answer: asyncio.Future[native.PredictStreamResponse]) -> None:
                if not answer.cancelled():
                    respond(answer.result())

            answer = asyncio.ensure_future(predict(request))
            answer.add_done_callback(done)
            return answer

        async for response in stream.answered(_each(requests), begin, self._stream_requests):
            yield response

    async def replied(
        self, path: str, request: Message, grpc_context: RayServegRPCContext | None
    ) -> RpcReply:
        """Lets a replica answer a unary call."""
        metadata = tuple(grpc_context.invocation_metadata()) if grpc_context else ()
        if self._callers and grpc_context:
            try:
                check_rpc(self._callers, path, metadata)
            except EverloopError as error:
                return replied(error)
        try:
            return await self.replicas.rpc(RpcRequest(path, request.SerializeToString(), metadata))
        except Lost:
            return replied(_LOST)

    def mark(self) -> str:
        """The fingerprint of the replicas that answer."""
        return self._mark

    async def __call__(self, request: Request) -> Response:
        """Answers a request over HTTP."""
        if self._callers:
            try:
                check_http(self._callers, request.scope["path"], request.headers.raw)
            except EverloopError as error:
                return _response(refusal(error))
        passed = HttpRequest(
            request.method, request.scope["path"], tuple(request.headers.raw), await request.body()
        )
        try:
            reply = await self.replicas.http(passed)
        except Lost:
            return Response(_LOST.message, 503, {"retry-after": "1"})
        return _response(reply)


def application(
    replicas: DeploymentHandle[Any], mark: str, stream_requests: int, callers_file: Path | None
) -> serve.Application:
    """Describes the deployment to Ray Serve; takes what `RayIngress` does."""
    deployment = serve.deployment(
        name="ingress", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1024
    )(RayIngress)
    return deployment.bind(replicas, mark, stream_requests, callers_file)


def _response(reply: HttpReply) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reply.headers}
    return Response(reply.body, reply.status, headers)


async def _each(
    requests: AsyncIterable[native.PredictStreamRequest] | Iterable[native.PredictStreamRequest],
) -> AsyncIterator[native.PredictStreamRequest]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    else:
        for request in requests:
            yield request
