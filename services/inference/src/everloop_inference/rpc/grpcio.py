"""The same methods on grpcio's asyncio server: the fallback."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from everloop_inference.rpc.limits import Limits
from everloop_inference.rpc.methods import Handler, Methods
from everloop_inference.rpc.status import Abort

__all__ = ["GrpcioServer"]

log = logging.getLogger(__name__)

_UNSET = (None, 0, grpc.StatusCode.OK)


class GrpcioServer:
    """See `RpcServer`; of the limits, grpcio knows most."""

    def __init__(self, methods: Methods, limits: Limits) -> None:
        """Listens to nothing yet; takes what is answered and what is allowed."""
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=limits.concurrent_calls,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", limits.message_bytes),
                ("grpc.max_send_message_length", limits.message_bytes),
                ("grpc.max_metadata_size", limits.metadata_bytes),
                ("grpc.absolute_max_metadata_size", 2 * limits.metadata_bytes),
                ("grpc.max_concurrent_streams", limits.streams),
                ("grpc.max_allowed_incoming_connections", limits.connections),
                ("grpc.max_connection_idle_ms", int(limits.idle_seconds * 1000)),
                ("grpc.max_connection_age_ms", int(limits.age_seconds * 1000)),
                ("grpc.server_handshake_timeout_ms", int(limits.handshake_seconds * 1000)),
                ("grpc.keepalive_time_ms", int(limits.keepalive_seconds * 1000)),
                ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_seconds * 1000)),
            ],
        )
        for service, handlers in self.handlers(methods).items():
            self._server.add_registered_method_handlers(service, handlers)
            generic = grpc.method_handlers_generic_handler(service, handlers)
            self._server.add_generic_rpc_handlers((generic,))

    @staticmethod
    def handlers(methods: Methods) -> dict[str, dict[str, Handler]]:
        """The methods by service, as a server of grpcio's kind takes them."""
        return {
            service: {name: _waiting(handler) for name, handler in handlers.items()}
            for service, handlers in methods.services.items()
        }

    async def start(self, address: str) -> None:
        """See `RpcServer`."""
        try:
            self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise OSError(str(error)) from error
        await self._server.start()

    async def stop(self, seconds: float) -> None:
        """See `RpcServer`."""
        await self._server.stop(seconds)


def _waiting(handler: Handler) -> Handler:
    """A unary method that is a plain function as the coroutine function that grpcio wants."""
    if handler.request_streaming or handler.response_streaming:
        return handler
    behavior: Any = handler.unary_unary

    async def answer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            found = behavior(request, context)
            return await found if hasattr(found, "__await__") else found
        except Abort as error:
            await context.abort(error.code, error.details, error.trailing_metadata)
        except Exception:
            # grpcio would tell the caller.
            if context.code() not in _UNSET:
                raise
            log.exception("a handler failed")
            await context.abort(grpc.StatusCode.UNKNOWN, "the handler failed")

    wrapped: Handler = grpc.unary_unary_rpc_method_handler(
        answer, handler.request_deserializer, handler.response_serializer
    )
    return wrapped
