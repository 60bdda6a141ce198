"""The end of a pool: whole requests in, whole answers out, without a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

import grpc

from everloop_inference.http.app import HttpApp
from everloop_inference.ports import HttpReply, HttpRequest, RpcReply, RpcRequest
from everloop_inference.rpc import Abort, Methods
from everloop_inference.rpc.metadata import Metadata

__all__ = ["Receiver"]

_CONNECTION = frozenset({b"connection", b"content-length"})


class Receiver:
    """Answers what others passed on with what answers the listeners; lives on their event loop."""

    def __init__(self, app: HttpApp, methods: Methods) -> None:
        """Takes what is behind the listeners."""
        self._app = app
        self._methods = methods.by_path()

    async def http(self, request: HttpRequest) -> HttpReply:
        """Answers a request over HTTP."""
        unread = [request.body]
        sent: list[MutableMapping[str, Any]] = []

        async def receive() -> MutableMapping[str, Any]:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            # Who is gone cancels the whole request.
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        async def send(message: MutableMapping[str, Any]) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": request.method,
            "path": request.path,
            "headers": request.headers,
        }
        await self._app(scope, receive, send)
        start, body = sent
        headers = tuple(pair for pair in start["headers"] if pair[0] not in _CONNECTION)
        return HttpReply(start["status"], headers, body["body"])

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """Answers a unary call of gRPC, whatever becomes of it."""
        method = self._methods.get(request.path.encode())
        if method is None or method.requests or method.answers:
            code, _ = grpc.StatusCode.UNIMPLEMENTED.value
            return RpcReply(b"", code, f"{request.path} cannot be passed on")
        try:
            answer = method.behavior(method.deserialize(request.message), _Context(request))
            if hasattr(answer, "__await__"):
                answer = await answer
        except Abort as error:
            return RpcReply(b"", error.code.value[0], error.details, tuple(error.trailing_metadata))
        return RpcReply(method.serialize(answer))


class _Context:
    """What the unary methods of this service ask of a call's context."""

    def __init__(self, request: RpcRequest) -> None:
        self._metadata = request.metadata
        seconds = request.seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def time_remaining(self) -> float | None:
        if self._deadline is None:
            return None
        return max(0.0, self._deadline - time.monotonic())
