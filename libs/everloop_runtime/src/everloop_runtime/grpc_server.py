"""The gRPC server of a service: health, reflection, and one interceptor chain for traces, metrics and errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status
from prometheus_client import Counter, Histogram

from everloop_runtime.errors import EverloopError, Kind, rich_status
from everloop_runtime.service import Component, Stopper
from everloop_runtime.settings import ServiceSettings
from everloop_runtime.telemetry import span

__all__ = ["GrpcServer", "Register"]

log = logging.getLogger(__name__)

Register = Callable[[grpc.Server], None]
"""Adds one servicer, `lambda server: x_pb2_grpc.add_XServicer_to_server(servicer, server)`."""

HANDLED = Counter("everloop_grpc_requests", "gRPC calls that were answered.", ["method", "code"])
SECONDS = Histogram(
    "everloop_grpc_request_duration_seconds", "Time to answer a gRPC call.", ["method"]
)
INTERNAL = EverloopError(Kind.INTERNAL, "INTERNAL", "internal error; the server's log has the details")


class _Interceptor(grpc.ServerInterceptor):
    """Continues the caller's trace, counts and times the call, and turns errors into statuses."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        handler: Any = continuation(details)
        if handler is None or handler.request_streaming:
            return handler
        method = str(details.method)
        headers = {key: value for key, value in details.invocation_metadata or () if isinstance(value, str)}

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            began, code = time.perf_counter(), grpc.StatusCode.OK
            with span(method, headers):
                try:
                    if handler.response_streaming:
                        yield from handler.unary_stream(request, context)
                    else:
                        yield handler.unary_unary(request, context)
                except EverloopError as error:
                    code = _abort(context, error)
                except Exception:
                    if context.is_active():
                        log.exception("%s failed", method)
                    code = _abort(context, INTERNAL)
                finally:
                    HANDLED.labels(method, code.name).inc()
                    SECONDS.labels(method).observe(time.perf_counter() - began)

        def unary(request: Any, context: grpc.ServicerContext) -> Any:
            # Run to the end: what follows the answer belongs to the call as well.
            answers = list(stream(request, context))
            return answers[0] if answers else None

        make: Any = (
            grpc.unary_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        rpc_handler: grpc.RpcMethodHandler = make(
            stream if handler.response_streaming else unary,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )
        return rpc_handler


def _abort(context: grpc.ServicerContext, error: EverloopError) -> grpc.StatusCode:
    status = rpc_status.to_status(rich_status(error))
    context.set_code(status.code)
    context.set_details(status.details)
    context.set_trailing_metadata(status.trailing_metadata)
    code: grpc.StatusCode = status.code
    return code


class GrpcServer(Component):
    """A threaded gRPC server with `grpc.health.v1`, reflection and `google.rpc` errors."""

    name = "gRPC server"

    def __init__(self, settings: ServiceSettings, services: Sequence[str], register: Sequence[Register]) -> None:
        """Takes full service names (for health and reflection) and what adds their servicers."""
        self._address = settings.grpc_address
        self._drain = settings.drain_seconds
        self._health = health.HealthServicer()
        limit = settings.grpc_max_message_bytes
        self._server = grpc.server(
            ThreadPoolExecutor(settings.grpc_workers, thread_name_prefix="grpc"),
            interceptors=[_Interceptor()],
            maximum_concurrent_rpcs=settings.grpc_max_concurrent_calls,
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
            (*services, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        self.ready(False)

    def ready(self, ready: bool) -> None:
        """Sets what health checks are told."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
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
