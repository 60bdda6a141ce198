"""Predictions over gRPC: the Open Inference Protocol and the native API."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from google.protobuf.message import Message

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference import stream
from everloop_inference.domain import Answer, Call
from everloop_inference.grpc_errors import aborted, failure
from everloop_inference.metrics import Door
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import RpcRequest
from everloop_inference.predict import Predictor
from everloop_inference.protocols import native_proto, oip_json, oip_proto
from everloop_runtime.errors import INTERNAL, EverloopError
from everloop_runtime.telemetry import span

__all__ = ["NativeServicer", "OipServicer"]

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Any, Any], Awaitable[Any]]
Respond = Callable[[native.PredictStreamResponse], None]
Running = asyncio.Future[Any] | None

_NATIVE: Final = Door("grpc")
_STREAM: Final = Door("grpc-stream")
_OIP: Final = Door("grpc-oip")
_PREDICT: Final = "/everloop.inference.v1.InferenceService/Predict"


def _answers(door: Door) -> Callable[[Method], Method]:
    """Turns a method that answers or raises into a handler: continues the trace, counts, and maps errors."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        async def handler(self: Any, request: Any, context: Context) -> Any:
            trace = _trace(context)
            try:
                if trace is None:
                    return await method(self, request, context)
                with span(method.__name__, {"traceparent": trace}):
                    return await method(self, request, context)
            except EverloopError as error:
                refused = error
            except Exception:
                log.exception("%s failed", method.__name__)
                refused = INTERNAL
            door.refused(refused.reason)
            raise aborted(refused)

        return handler

    return wrap


def _call(request: Message, context: Context) -> Call:
    """What the core must know about a request besides its content."""
    began = time.perf_counter()
    remaining = context.time_remaining()
    deadline = math.inf if remaining is None else began + remaining
    return Call(began, request.ByteSize(), deadline)


def _trace(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return str(value)
    return None


class OipServicer(oip_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol."""

    def __init__(
        self, predictor: Predictor, ready: Callable[[], bool], pools: Pools | None = None
    ) -> None:
        """Takes what predicts, what ServerReady says, and what is listed beside what serves here."""
        self._predictor = predictor
        self._pools = pools
        self._models = predictor.models
        self._ready = ready

    @_answers(_OIP)
    async def ServerLive(
        self, request: oip.ServerLiveRequest, context: Context
    ) -> oip.ServerLiveResponse:
        """Answers: that is all there is to it."""
        return oip.ServerLiveResponse(live=True)

    @_answers(_OIP)
    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: Context
    ) -> oip.ServerReadyResponse:
        """False while the replica drains."""
        return oip.ServerReadyResponse(ready=self._ready())

    @_answers(_OIP)
    async def ModelReady(
        self, request: oip.ModelReadyRequest, context: Context
    ) -> oip.ModelReadyResponse:
        """Raises NOT_FOUND for a model that is not served."""
        if self._pools is not None and request.name in self._pools:
            self._pools.version(request.name, request.version)
        else:
            self._models.get(request.name, request.version)
        return oip.ModelReadyResponse(ready=True)

    @_answers(_OIP)
    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Describes the server."""
        return oip.ServerMetadataResponse(
            name=oip_json.SERVER, version=oip_json.VERSION, extensions=oip_json.EXTENSIONS
        )

    @_answers(_OIP)
    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Describes a model."""
        served = self._models.served(request.name)
        return oip_proto.described(served.named(request.version), served.versions)

    @_answers(_OIP)
    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Lists what serves."""
        index = oip.RepositoryIndexResponse.ModelIndex
        pooled = self._pools.answering if self._pools is not None else ()
        listed = oip_json.repository(self._models.answering, pooled)
        return oip.RepositoryIndexResponse(models=[index(**item) for item in listed])

    @_answers(_OIP)
    async def ModelInfer(
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        """Predicts; answers with raw contents where it was asked with them."""
        call = _call(request, context)
        oip_proto.check_outputs(request)
        answer = await self._predictor.tensors(
            request.model_name,
            request.model_version,
            functools.partial(oip_proto.quick, request),
            functools.partial(oip_proto.tensors, request),
            call,
        )
        response = oip_proto.response(answer, request)
        _OIP.answered(answer.model.name, call.began)
        return response


class NativeServicer(native_grpc.InferenceServiceServicer):
    """The row-shaped API."""

    def __init__(self, predictor: Predictor, pools: Pools | None = None) -> None:
        """Takes what predicts, and what requests of streams are passed on to."""
        self._predictor = predictor
        self._pools = pools

    @_answers(_NATIVE)
    async def Predict(
        self, request: native.PredictRequest, context: Context
    ) -> native.PredictResponse:
        """Predicts rows."""
        call = _call(request, context)
        answer = await self._predictor.rows(request.model, native_proto.rows(request.rows), call)
        response = native_proto.answered(answer)
        _NATIVE.answered(answer.model.name, call.began)
        return response

    async def PredictStream(
        self, requests: AsyncIterable[native.PredictStreamRequest], context: Context
    ) -> AsyncIterator[native.PredictStreamResponse]:
        """Predicts rows, request after request."""

        def begin(request: native.PredictStreamRequest, respond: Respond) -> Running:
            return self._begin(request, _call(request, context), respond)

        predictor = self._predictor
        # A stream can wait where a call would be refused.
        crowded = lambda: predictor.batcher.half_full  # noqa: E731
        async for response in stream.answered(requests, begin, predictor.capacity.stream, crowded):
            yield response

    def _begin(self, message: native.PredictStreamRequest, call: Call, respond: Respond) -> Running:
        """Starts one request of a stream; `respond` is called with its response once, now or later."""
        request = message.request

        def done(answer: asyncio.Future[Any]) -> None:
            if not answer.cancelled():
                respond(_streamed(message.id, answer.result, call))

        answer: asyncio.Future[Any]
        try:
            if self._pools is not None and request.model in self._pools:
                answer = asyncio.ensure_future(_passed(self._pools, request, call))
            else:
                answer = self._predictor.rows(request.model, native_proto.rows(request.rows), call)
        except Exception as error:
            respond(_streamed(message.id, functools.partial(_raise, error), call))
            return None
        answer.add_done_callback(done)
        return answer

    @_answers(_NATIVE)
    async def Explain(
        self, request: native.ExplainRequest, context: Context
    ) -> native.ExplainResponse:
        """Explains rows."""
        model, explanations = await self._predictor.explain(
            request.model,
            native_proto.rows(request.rows),
            request.label,
            _call(request, context),
        )
        return native_proto.explained(model, explanations)

    @_answers(_NATIVE)
    async def GetModel(
        self, request: native.GetModelRequest, context: Context
    ) -> native.GetModelResponse:
        """Describes a model."""
        served = self._predictor.models.served(request.model)
        return native.GetModelResponse(model=native_proto.described(served))


async def _passed(
    pools: Pools, request: native.PredictRequest, call: Call
) -> native.PredictResponse:
    """Lets a pool answer one request of a stream.

    Raises:
        EverloopError: as `Pools.rpc`, or as the pool says.
    """
    left = call.deadline - time.perf_counter()
    seconds = None if left == math.inf else left
    reply = await pools.rpc(
        request.model, RpcRequest(_PREDICT, request.SerializeToString(), (), seconds)
    )
    if reply.code:
        raise failure(reply)
    return native.PredictResponse.FromString(reply.message)


def _streamed(
    name: str, result: Callable[[], Answer | native.PredictResponse], call: Call
) -> native.PredictStreamResponse:
    """The response to one request of a stream, whatever became of it."""
    try:
        answer = result()
        if isinstance(answer, native.PredictResponse):  # counted by the pool
            return native.PredictStreamResponse(id=name, response=answer)
        response = native.PredictStreamResponse(id=name, response=native_proto.answered(answer))
    except EverloopError as error:
        _STREAM.refused(error.reason)
        return native_proto.refused(name, error)
    except Exception:
        log.exception("a request of a stream failed")
        _STREAM.refused(INTERNAL.reason)
        return native_proto.refused(name, INTERNAL)
    _STREAM.answered(answer.model.name, call.began)
    return response


def _raise(error: Exception) -> Answer:
    raise error
