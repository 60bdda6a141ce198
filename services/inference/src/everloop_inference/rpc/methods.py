"""The methods that a server answers, as generated code registers them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc

__all__ = ["Handler", "Method", "Methods"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        behavior: the servicer's method.
        requests: True if it takes a stream.
        answers: True if it gives a stream.
        deserialize: bytes to a request.
        serialize: an answer to bytes.
    """

    behavior: Callable[[Any, Any], Any]
    requests: bool
    answers: bool
    deserialize: Callable[[bytes], Any]
    serialize: Callable[[Any], bytes]


class Methods:
    """Stands where generated `add_*Servicer_to_server` functions expect a server, and keeps what they add.

    A unary method may be a plain function: it runs at once, on the event loop, and returns its answer or an awaitable
    of it. Whatever streams is a coroutine function or an asynchronous generator function.
    """

    def __init__(self) -> None:
        """Holds nothing."""
        self.services: dict[str, dict[str, Handler]] = {}
        self._generic = 0

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, Handler]
    ) -> None:
        """Called by generated code."""
        self.services[service_name] = dict(method_handlers)

    def add_generic_rpc_handlers(
        self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]
    ) -> None:
        """Called by generated code too, with handlers that it registers under their names as well."""
        self._generic += len(tuple(generic_rpc_handlers))

    def by_path(self) -> dict[bytes, Method]:
        """Every method by the path of its requests.

        Raises:
            ValueError: a service was added by code that is too old to name its methods.
        """
        if self._generic > len(self.services):
            raise ValueError(
                "a service has no named methods: generate its code with grpcio-tools 1.64 or newer"
            )
        return {
            f"/{service}/{name}".encode(): _method(handler)
            for service, handlers in self.services.items()
            for name, handler in handlers.items()
        }


def _method(handler: Handler) -> Method:
    behavior: Callable[[Any, Any], Any] | None = (
        (handler.stream_stream if handler.response_streaming else handler.stream_unary)
        if handler.request_streaming
        else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
    )
    assert behavior is not None
    return Method(
        behavior,
        handler.request_streaming,
        handler.response_streaming,
        handler.request_deserializer or bytes,
        handler.response_serializer or bytes,
    )
