"""The listeners of a replica: HTTP and gRPC on one event loop in one thread of their own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.addresses import bound
from everloop_inference.callers import guarded_app, guarded_methods
from everloop_inference.http.app import HttpApp
from everloop_inference.http.listener import HttpLimits, HttpServer
from everloop_inference.metrics import GRPC_CLOSED
from everloop_inference.pools.pass_on import pass_on
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import HttpReply, HttpRequest, RpcReply, RpcRequest
from everloop_inference.predict import Predictor
from everloop_inference.receiver import Receiver
from everloop_inference.rpc import GrpcioServer, Limits, Methods, NativeServer, RpcServer
from everloop_inference.servicer import NativeServicer, OipServicer
from everloop_inference.settings import InferenceSettings
from everloop_runtime.reflection import Descriptors

__all__ = ["SERVICES", "STOP_SECONDS", "Listeners"]

log = logging.getLogger(__name__)

T = TypeVar("T")

SERVICES = ("inference.GRPCInferenceService", "everloop.inference.v1.InferenceService")
START_SECONDS = 30.0
STOP_SECONDS = 5.0
"""Time that the listeners need besides draining, at most."""


class Listeners:
    """Binds with SO_REUSEPORT: replicas of a node share the addresses, and the kernel spreads the connections."""

    def __init__(
        self,
        settings: InferenceSettings,
        predictor: Predictor,
        fingerprint: str,
        pools: Pools | None = None,
        *,
        public: bool = True,
    ) -> None:
        """Binds nothing yet; where not `public`, never: then requests come by `http` and `rpc` alone."""
        self._settings = settings
        self._predictor = predictor
        self._pools = pools
        self._public = public
        self._receiver: Receiver | None = None
        self._app = HttpApp(predictor, fingerprint, settings.http_max_body_bytes, pools)
        self._loop = uvloop.new_event_loop()
        self._stop = asyncio.Event()
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="listeners", daemon=True)

    def start(self) -> None:
        """Returns when both listeners answer.

        Raises:
            RuntimeError: an address cannot be bound.
        """
        self._thread.start()
        if not self._started.wait(START_SECONDS) or self._failure:
            raise RuntimeError("the listeners did not start") from self._failure

    async def answer(self, seconds: float) -> None:
        """Returns if the loop turns.

        Raises:
            RuntimeError: the thread has ended.
            TimeoutError: the loop did nothing for so many seconds.
        """
        if not self._thread.is_alive():
            raise RuntimeError("the listeners' thread has ended") from self._failure
        turned = asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop)
        await asyncio.wait_for(asyncio.wrap_future(turned), seconds)

    async def http(self, request: HttpRequest) -> HttpReply:
        """Answers what another process passed on; called from any event loop."""
        return await self._elsewhere(self._open.http(request))

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """As `http`, a unary call of gRPC."""
        return await self._elsewhere(self._open.rpc(request))

    @property
    def _open(self) -> Receiver:
        if self._receiver is None:
            raise RuntimeError("the listeners have not started")
        return self._receiver

    async def _elsewhere(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    def stop(self) -> None:
        """Takes no new connections, lets what runs finish, and closes; `STOP_SECONDS` after the drain in any case."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop closed meanwhile
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(self._settings.drain_seconds + STOP_SECONDS)
            if self._thread.is_alive():
                log.error("the listeners do not stop")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:
            self._failure = error
            log.exception("the listeners failed")
        finally:
            self._started.set()
            self._loop.close()

    async def _serve(self) -> None:
        callers = self._settings.callers()
        http = HttpServer(guarded_app(self._app, callers), _http_limits(self._settings))
        methods, health_servicer = await _methods(
            self._predictor, lambda: not self._app.draining, self._pools
        )
        self._receiver = Receiver(self._app, methods)
        if not self._public:
            self._started.set()
            await self._stop.wait()
            return
        rpc = _grpc_server(self._settings, guarded_methods(methods, callers))
        await rpc.start(self._settings.predict_grpc_address)
        with bound(self._settings.http_address) as listening:
            await http.start(listening)
            self._started.set()
            log.info(
                "listening: HTTP %s, gRPC %s",
                self._settings.http_address,
                self._settings.predict_grpc_address,
            )
            await self._stop.wait()
            # Whoever calls now is told to come back over a new connection, to another replica.
            self._app.draining = True
            await health_servicer.enter_graceful_shutdown()
            seconds = self._settings.drain_seconds
            await asyncio.gather(http.stop(seconds), rpc.stop(seconds))


def _http_limits(settings: InferenceSettings) -> HttpLimits:
    return HttpLimits(
        connections=settings.http_max_connections,
        body_bytes=settings.http_max_body_bytes,
        received_bytes=settings.http_max_received_bytes,
        head_bytes=settings.http_max_head_bytes,
        idle_seconds=settings.http_keep_alive_seconds,
        request_seconds=settings.request_seconds,
        stall_seconds=settings.stall_seconds,
    )


async def _methods(
    predictor: Predictor, ready: Callable[[], bool], pools: Pools | None
) -> tuple[Methods, health.aio.HealthServicer]:
    methods: Any = Methods()
    native_grpc.add_InferenceServiceServicer_to_server(NativeServicer(predictor, pools), methods)
    oip = OipServicer(predictor, ready, pools)
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(oip, methods)
    if pools is not None:
        pass_on(methods, pools)
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, methods)
    for name in ("", *SERVICES):
        await servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    untyped: Any = reflection_pb2_grpc
    untyped.add_ServerReflectionServicer_to_server(
        reflection.aio.ReflectionServicer(
            (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME),
            pool=Descriptors(),
        ),
        methods,
    )
    return methods, servicer


def _grpc_server(settings: InferenceSettings, methods: Methods) -> RpcServer:
    limits = Limits(
        message_bytes=settings.grpc_max_message_bytes,
        concurrent_calls=settings.predict_grpc_max_concurrent_calls,
        connections=settings.predict_grpc_max_connections,
        received_bytes=settings.predict_grpc_max_received_bytes,
        unsent_bytes=settings.predict_grpc_max_unsent_bytes,
        request_seconds=settings.request_seconds,
        stall_seconds=settings.stall_seconds,
        idle_seconds=settings.predict_grpc_idle_seconds,
        age_seconds=settings.predict_grpc_age_seconds,
    )
    if settings.predict_grpc_server == "grpcio":
        return GrpcioServer(methods, limits)
    return NativeServer(methods, limits, lambda reason: GRPC_CLOSED.labels(reason).inc())
