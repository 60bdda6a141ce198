"""The gRPC server of a service: health, reflection, and one interceptor for callers, traces, metrics and errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from prometheus_client import Counter, Histogram

from everloop_runtime.callers import HEADER, Callers
from everloop_runtime.errors import GRPC_CODES, INTERNAL, EverloopError, Kind, rich_status
from everloop_runtime.reflection import Descriptors
from everloop_runtime.service import Component, Stopper
from everloop_runtime.settings import ServiceSettings
from everloop_runtime.telemetry import span

__all__ = ["GrpcServer", "Register"]

log = logging.getLogger(__name__)

Register = Callable[[grpc.Server], None]
"""Adds one servicer, `lambda server: x_pb2_grpc.add_XServicer_to_server(servicer, server)`."""

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

HANDLED = Counter("everloop_grpc_requests", "gRPC calls that were answered.", ["method", "code"])
SECONDS = Histogram(
    "everloop_grpc_request_duration_seconds", "Time to answer a gRPC call.", ["method"]
)


class _Interceptor(grpc.ServerInterceptor):
    """Asks who calls, continues the caller's trace, counts and times the call, and turns errors into statuses."""

    def __init__(self, callers: Callers | None, streams: int, watched: Mapping[str, int]) -> None:
        """Takes who may call, and how many streams may run at once: each holds a worker for as long as it lasts.

        Those of the methods in `watched` have workers of their own, as many as it says.
        """
        self._callers = callers
        self._streams = threading.BoundedSemaphore(streams)
        self._watched = {
            method: (
                threading.BoundedSemaphore(count),
                # One more, which refuses.
                ThreadPoolExecutor(count + 1, thread_name_prefix="watch"),
            )
            for method, count in watched.items()
        }

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(details)
        method = str(details.method)
        # Health and reflection bring their own ways: a health watch must not hold a worker. They tell nothing that a
        # caller without a token may not know.
        if handler is None or method.startswith("/grpc."):
            return handler
        headers = {
            key: value for key, value in details.invocation_metadata or () if isinstance(value, str)
        }
        coding: Any = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if answer_all := handler.unary_stream or handler.stream_stream:
            limit, pool = self._watched.get(method, (self._streams, None))

            def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
                with _observed(method, headers, context), _held(limit):
                    self._admit(headers)
                    for answer in answer_all(request, context):
                        # A token may be taken back while a stream lasts.
                        self._admit(headers)
                        yield answer

            if pool:
                # What grpcio asks the function of a method for.
                stream.experimental_thread_pool = pool  # type: ignore[attr-defined]

            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            streaming: Handler = make(stream, **coding)
            return streaming
        if collect := handler.stream_unary:

            def collected(requests: Any, context: grpc.ServicerContext) -> Any:
                with _observed(method, headers, context), _held(self._streams):
                    self._admit(headers)
                    return collect(self._admitted(requests, headers), context)

            collecting: Handler = grpc.stream_unary_rpc_method_handler(collected, **coding)
            return collecting
        answer = handler.unary_unary
        assert answer is not None

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            with _observed(method, headers, context):
                _acts(request, self._admit(headers))
                return answer(request, context)

        single: Handler = grpc.unary_unary_rpc_method_handler(unary, **coding)
        return single

    def _admit(self, headers: Mapping[str, str]) -> str:
        """Returns who calls; empty where nobody asks.

        Raises:
            EverloopError: as `Callers.admit`.
        """
        if self._callers is None:
            return ""
        caller = self._callers.admit(headers.get(HEADER))
        trace.get_current_span().set_attribute("enduser.id", caller)
        return caller

    def _admitted(self, requests: Iterator[Any], headers: Mapping[str, str]) -> Iterator[Any]:
        """The messages of a stream, for as long as its caller may send any."""
        for request in requests:
            self._admit(headers)
            yield request


def _acts(request: Any, caller: str) -> None:
    """Lets the audit trails say who called: a caller may act for somebody, and cannot pass for somebody."""
    if caller and "actor" in request.DESCRIPTOR.fields_by_name and request.actor != caller:
        request.actor = f"{caller} for {request.actor}" if request.actor else caller


@contextmanager
def _held(workers: threading.BoundedSemaphore) -> Iterator[None]:
    """Holds one of the workers that streams may have."""
    if not workers.acquire(blocking=False):
        raise EverloopError(Kind.EXHAUSTED, "TOO_MANY_STREAMS", "too many streams: ask again later")
    try:
        yield
    finally:
        workers.release()


@contextmanager
def _observed(
    method: str, headers: Mapping[str, str], context: grpc.ServicerContext
) -> Iterator[None]:
    """Runs a call inside its span, with its metrics; an error ends it with a status of its kind."""
    began = time.perf_counter()
    error = None
    attributes = {"rpc.system": "grpc", "rpc.method": method}
    with span(method, headers, kind=SpanKind.SERVER, attributes=attributes):
        try:
            yield
        except EverloopError as raised:
            error = raised
        except Exception:
            # A caller that hung up ends a stream with an error of its own: nobody is to be told.
            if context.is_active():
                log.exception("%s failed", method)
            error = INTERNAL
        finally:
            code = GRPC_CODES[error.kind] if error else grpc.StatusCode.OK
            HANDLED.labels(method, code.name).inc()
            SECONDS.labels(method).observe(time.perf_counter() - began)
    if error:
        context.abort_with_status(rpc_status.to_status(rich_status(error)))


class _Health(health.HealthServicer):
    """Health whose watchers may hang up at any moment.

    The library's takes its lock on the thread that completes sends, and sends under that lock: a watcher that hung up
    while the status changed stopped the server for good. Here that thread takes no lock.
    """

    # What the library's own class sets, and its stubs do not tell.
    _lock: Any
    _server_status: dict[str, int]
    _send_response_callbacks: dict[str, set[Callable[[Any], None]]]

    def _on_close_callback(self, send_response_callback: Any, service: str) -> Callable[[], None]:
        def closed() -> None:
            self._send_response_callbacks[service].discard(send_response_callback)
            send_response_callback(None)

        return closed

    def set(self, service: str, status: int) -> None:
        """Sets the status of a service and tells those who watch it."""
        with self._lock:
            self._server_status[service] = status
            for send in tuple(self._send_response_callbacks.get(service, ())):
                send(health_pb2.HealthCheckResponse(status=status))


class GrpcServer(Component):
    """A threaded gRPC server with `grpc.health.v1`, reflection and `google.rpc` errors."""

    name = "gRPC server"

    def __init__(
        self,
        settings: ServiceSettings,
        services: Sequence[str],
        register: Sequence[Register],
        watched: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Takes what it serves.

        Args:
            settings: those of the service.
            services: full names of services, for health and reflection.
            register: what adds their servicers.
            watched: methods, `/service/method`, whose streams last for as long as somebody watches, and how many of
                them there may be at once. Each has a thread of its own, so that they take no worker from anybody else.
        """
        self._address = settings.grpc_address
        self._drain = settings.drain_seconds
        self._health = _Health()
        limit = settings.grpc_max_message_bytes
        self._server = grpc.server(
            ThreadPoolExecutor(settings.grpc_workers, thread_name_prefix="grpc"),
            # Half of the workers stay free for calls, the health check among them.
            interceptors=[
                _Interceptor(settings.callers(), max(1, settings.grpc_workers // 2), watched)
            ],
            maximum_concurrent_rpcs=settings.grpc_max_concurrent_calls + sum(watched.values()),
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                ("grpc.so_reuseport", 0),
            ],
        )
        for add in register:
            add(self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = ("", *services)
        self._names = names
        reflection.enable_server_reflection(
            (*services, health.SERVICE_NAME, reflection.SERVICE_NAME),
            self._server,
            pool=Descriptors(),  # type: ignore[arg-type]  # as much of a pool as reflection uses
        )
        self.ready(False)

    def ready(self, ready: bool) -> None:
        """Sets what health checks are told."""
        status = (
            health_pb2.HealthCheckResponse.SERVING
            if ready
            else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in self._names:
            self._health.set(name, status)

    def start(self, stopper: Stopper) -> None:
        """Binds and serves.

        Raises:
            RuntimeError: the address is taken.
        """
        self._server.add_insecure_port(self._address)
        self._server.start()

    def stop(self) -> None:
        """Refuses new calls and waits for the running ones."""
        self.ready(False)
        self._server.stop(self._drain).wait()
