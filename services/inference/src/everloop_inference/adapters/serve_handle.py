"""Another deployment of Ray Serve, reached by its handle."""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from everloop_inference.passing import HttpReply, HttpRequest, RpcReply, RpcRequest
from everloop_inference.ports import Lost

__all__ = ["ServeHandle"]

T = TypeVar("T")


class ServeHandle:
    """See `Elsewhere`; Ray Serve starts a replica where there is none, and holds the requests until there is."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Takes the handle; connects it, which may wait for Ray Serve's controller."""
        self._http = handle.options(method_name="http")
        self._rpc = handle.options(method_name="rpc")

    async def http(self, request: HttpRequest) -> HttpReply:
        """See `Elsewhere`."""
        reply: HttpReply = await _answer(self._http, request)
        return reply

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """See `Elsewhere`."""
        reply: RpcReply = await _answer(self._rpc, request)
        return reply


async def _answer(handle: DeploymentHandle[Any], request: object) -> Any:
    response: Any = handle.remote(request)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except (RayActorError, DeploymentUnavailableError) as error:
        raise Lost(str(error)) from error
