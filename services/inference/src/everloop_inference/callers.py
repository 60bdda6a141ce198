"""Who may ask for predictions: the check that stands in front of both listeners and of Ray's proxies.

What is open to everybody says whether the server is there and how it is asked, and nothing of its models. What one
replica passes on to another was asked at the first.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterable, MutableMapping
from typing import Any, Final, Protocol

import grpc

from everloop_inference.grpc_errors import aborted
from everloop_inference.http.app import refuse
from everloop_inference.http.routes import Asked, route
from everloop_inference.metrics import Door
from everloop_inference.rpc import Abort, Methods
from everloop_inference.rpc.metadata import Metadata
from everloop_inference.rpc.methods import Handler
from everloop_runtime.callers import HEADER, Callers
from everloop_runtime.errors import EverloopError

__all__ = ["check_http", "check_rpc", "guarded_app", "guarded_methods"]


class Asgi(Protocol):
    """An application of HTTP, as the ASGI specification has it."""

    def __call__(
        self, scope: MutableMapping[str, Any], receive: Any, send: Any
    ) -> Coroutine[Any, Any, None]:
        """Answers one request."""


_HEADER: Final = HEADER.encode()
_OPEN_PATHS: Final = frozenset({Asked.LIVE, Asked.READY, Asked.SERVER, Asked.OPENAPI})
_OPEN_METHODS: Final = tuple(
    f"/inference.GRPCInferenceService/Server{what}" for what in ("Live", "Ready", "Metadata")
)


def check_http(callers: Callers, path: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Returns if a request over HTTP may come in.

    Raises:
        EverloopError: as `Callers.admit`.
    """
    if route(path).asked not in _OPEN_PATHS:
        sent = next((value for name, value in headers if name == _HEADER), None)
        callers.admit(None if sent is None else sent.decode("latin-1"))


def check_rpc(callers: Callers, path: str, metadata: Metadata) -> None:
    """Returns if a call of gRPC may come in.

    Raises:
        EverloopError: as `Callers.admit`.
    """
    if not _open(path):
        sent = next((value for name, value in metadata if name == HEADER), None)
        callers.admit(sent if isinstance(sent, str) else None)


def _open(path: str) -> bool:
    """True for a method that everybody may call; health and reflection are."""
    return path in _OPEN_METHODS or path.startswith("/grpc.")


def guarded_app(app: Asgi, callers: Callers | None) -> Asgi:
    """Puts the check in front of an application of HTTP; where nobody is asked, it is the application itself."""
    if callers is None:
        return app

    async def checked(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        try:
            check_http(callers, scope["path"], scope["headers"])
        except EverloopError as error:
            await refuse(scope, error, send)
        else:
            await app(scope, receive, send)

    return checked


def guarded_methods(methods: Methods, callers: Callers | None) -> Methods:
    """Puts the check in front of methods of gRPC; where nobody is asked, they are the same."""
    if callers is None:
        return methods
    checked = Methods()
    for service, handlers in methods.services.items():
        checked.services[service] = {
            name: _checked(f"/{service}/{name}", handler, callers)
            for name, handler in handlers.items()
        }
    return checked


def _checked(path: str, handler: Handler, callers: Callers) -> Handler:
    if _open(path):
        return handler
    coding = (handler.request_deserializer, handler.response_serializer)
    door = Door("grpc-oip" if path.startswith("/inference.") else "grpc")
    # One of the two: no method here streams one way only.
    answer: Any = handler.unary_unary
    answers: Any = handler.stream_stream

    def check(context: Any) -> None:
        try:
            check_rpc(callers, path, tuple(context.invocation_metadata() or ()))
        except EverloopError as error:
            door.refused(error.reason)
            raise aborted(error) from error

    def unary(request: Any, context: Any) -> Any:
        check(context)
        return answer(request, context)

    async def stream(requests: Any, context: Any) -> Any:
        try:
            check(context)
            async for response in answers(requests, context):
                # A token may be taken back while a stream lasts.
                check(context)
                yield response
        except Abort as error:
            await context.abort(error.code, error.details, error.trailing_metadata)

    checked: Handler = (
        grpc.unary_unary_rpc_method_handler(unary, *coding)
        if answer is not None
        else grpc.stream_stream_rpc_method_handler(stream, *coding)
    )
    return checked
