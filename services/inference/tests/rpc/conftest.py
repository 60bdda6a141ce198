from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
import uvloop
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from grpc_status import rpc_status
from services.inference.tests.conftest import free_port
from services.inference.tests.rpc.wire import Polite

from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.rpc import Abort, GrpcioServer, Limits, Methods, NativeServer, RpcServer

SERVICE = "everloop.test.Probe"
Context = grpc.aio.ServicerContext[Any, Any]


class Probe:
    """A servicer of bytes that does what a test asks, and keeps what it saw."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[bytes] = []
        self.written = 0
        self.started = 0
        self.cancelled = 0
        self.done: list[bool] = []
        self.remaining: list[float | None] = []

    def echo(self, request: bytes, context: Context) -> bytes:
        self.started += 1
        return request

    def promise(self, request: bytes, context: Context) -> asyncio.Future[bytes]:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, request)
        return future

    async def wait(self, request: bytes, context: Context) -> bytes:
        self.started += 1
        self.remaining.append(context.time_remaining())
        call: Any = context
        call.add_done_callback(lambda ended: self.done.append(ended.cancelled()))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return request

    async def tell(self, request: bytes, context: Context) -> bytes:
        given: Any = context.invocation_metadata()
        pairs = tuple((key, value) for key, value in given if key.startswith("x-"))
        await context.send_initial_metadata((*pairs, ("peer", context.peer())))
        context.set_trailing_metadata(pairs)
        return request

    def refuse(self, request: bytes, context: Context) -> bytes:
        asked = json.loads(request)
        raise Abort(grpc.StatusCode[asked["code"]], asked["details"], (("x-why", "because"),))

    async def explain(self, request: bytes, context: Context) -> bytes:
        detail = any_pb2.Any()
        detail.Pack(
            error_details_pb2.ErrorInfo(reason="TOO_BAD", domain="test", metadata={"a": "ü"})
        )
        status = status_pb2.Status(code=5, message="nothing hier: ü", details=[detail])
        await context.abort_with_status(rpc_status.to_status(status))

    def fail(self, request: bytes, context: Context) -> bytes:
        raise KeyError("secret")

    def code(self, request: bytes, context: Context) -> bytes:
        context.set_code(grpc.StatusCode.OUT_OF_RANGE)
        context.set_details("set by hand")
        return request

    def unwritten(self, request: bytes, context: Context) -> bytes:
        context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        context.set_details("Method not implemented!")
        raise NotImplementedError

    def grow(self, request: bytes, context: Context) -> bytes:
        return bytes(int(request))

    def packed(self, request: bytes, context: Context) -> bytes:
        context.set_compression(grpc.Compression.Gzip)
        if request.startswith(b"as it is"):
            context.disable_next_message_compression()
        return request

    async def count(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        number, size = json.loads(request)
        for _ in range(number):
            yield bytes(size)
            self.written += size

    async def hold(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        self.started += 1
        yield b"begun"
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        yield b"ended"

    async def total(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        number = size = 0
        async for request in requests:
            number += 1
            size += len(request)
        return json.dumps([number, size]).encode()

    async def late(self, requests: AsyncIterator[bytes], context: Context) -> bytes:
        """Reads nothing before the gate opens."""
        self.started += 1
        await self.gate.wait()
        return await self.total(requests, context)

    async def chat(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        async for request in requests:
            self.seen.append(request)
            if request == b"stop":
                return
            yield request

    async def talk(self, _: object, context: Context) -> None:
        """The same by the methods of the context."""
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    def methods(self) -> Any:
        unary, many = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        handlers: dict[str, Any] = {
            "Echo": unary(self.echo),
            "Promise": unary(self.promise),
            "Wait": unary(self.wait),
            "Tell": unary(self.tell),
            "Refuse": unary(self.refuse),
            "Explain": unary(self.explain),
            "Fail": unary(self.fail),
            "Code": unary(self.code),
            "Unwritten": unary(self.unwritten),
            "Grow": unary(self.grow),
            "Packed": unary(self.packed),
            "Count": many(self.count),
            "Hold": many(self.hold),
            "Total": grpc.stream_unary_rpc_method_handler(self.total),
            "Late": grpc.stream_unary_rpc_method_handler(self.late),
            "Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "Talk": grpc.stream_stream_rpc_method_handler(self.talk),
        }
        methods = Methods()
        methods.add_registered_method_handlers(SERVICE, handlers)
        # As generated, without a method of its own.
        untyped: Any = oip_grpc
        untyped.add_GRPCInferenceServiceServicer_to_server(
            untyped.GRPCInferenceServiceServicer(), methods
        )
        return methods


class Served:
    """A server in a thread of its own."""

    def __init__(self, kind: str, limits: Limits, port: int) -> None:
        self.kind = kind
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.closed: list[str] = []
        self.stopped = False
        self._limits = limits
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self.run(self._start())

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        self.loop.close()

    def run(self, work: Any, seconds: float = 30.0) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(seconds)

    async def _start(self) -> None:
        self.probe = Probe()
        methods: Any = self.probe.methods()
        self.health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, methods)
        reflecting: Any = reflection_pb2_grpc
        names = ("inference.GRPCInferenceService", reflection.SERVICE_NAME, health.SERVICE_NAME)
        reflecting.add_ServerReflectionServicer_to_server(
            reflection.aio.ReflectionServicer(names), methods
        )
        self.server: RpcServer = (
            NativeServer(methods, self._limits, self.closed.append)
            if self.kind == "native"
            else GrpcioServer(methods, self._limits)
        )
        await self.server.start(self.address)

    def open(self) -> None:
        """Lets what waits go on."""
        self.loop.call_soon_threadsafe(self.probe.gate.set)

    def stop(self, seconds: float = 0.0) -> None:
        if not self.stopped:
            self.stopped = True
            self.run(self.server.stop(seconds))
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(10)

    def channel(self, *options: tuple[str, int], **kwargs: Any) -> Any:
        """A connection of its own."""
        return grpc.insecure_channel(
            self.address, [("grpc.use_local_subchannel_pool", 1), *options], **kwargs
        )

    def well(self) -> bool:
        """Whether another caller is answered."""
        with closing(self.channel()) as channel:
            return bool(unary(channel, "Echo")(b"well?", timeout=10) == b"well?")

    def answers(self) -> bool:
        """The same without grpcio."""
        with Polite(self.port) as client:
            return client.call(body=b"\0\0\0\0\2ok").data == b"\0\0\0\0\2ok"


def unary(channel: Any, name: str) -> Any:
    return channel.unary_unary(f"/{SERVICE}/{name}")


@pytest.fixture(params=["native", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(kind: str) -> Iterator[Callable[..., Served]]:
    """Starts servers: `serve(**limits)`; `port=` to share an address."""
    running: list[Served] = []

    def start(port: int | None = None, **limits: Any) -> Served:
        served = Served(kind, Limits(**limits), port or free_port())
        running.append(served)
        return served

    yield start
    for served in running:
        served.stop()


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()
