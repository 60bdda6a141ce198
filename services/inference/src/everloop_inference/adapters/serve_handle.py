"""Another deployment of Ray Serve, reached by its handle."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from everloop_inference.ports import HttpReply, HttpRequest, Lost, RpcReply, RpcRequest

__all__ = ["ServeHandle"]

_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)

# What fits into one message between replicas with its answer; Ray's object store carries what is larger.
SMALL_BYTES = 256 * 1024


class ServeHandle:
    """See `Elsewhere`; Ray Serve starts a replica where there is none, and holds the requests until there is."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        """Takes the handle; connects it, which may wait for Ray Serve's controller."""
        # Between replicas gRPC costs a third of what a call through Ray's object store costs.
        self._http = handle.options(method_name="http", _by_reference=False)
        self._large_http = handle.options(method_name="http")
        self._rpc = handle.options(method_name="rpc", _by_reference=False)
        self._large_rpc = handle.options(method_name="rpc")

    async def http(self, request: HttpRequest) -> HttpReply:
        """See `Elsewhere`."""
        is_small = len(request.body) < SMALL_BYTES
        reply: HttpReply = await _answer(self._http if is_small else self._large_http, request)
        return reply

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """See `Elsewhere`."""
        is_small = len(request.message) < SMALL_BYTES
        reply: RpcReply = await _answer(self._rpc if is_small else self._large_rpc, request)
        return reply


async def _answer(handle: DeploymentHandle[Any], request: object) -> Any:
    response: Any = handle.remote(request)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise
    except grpc.aio.AioRpcError as error:
        if error.code() not in _GONE:
            raise
        raise Lost(str(error.details())) from error
    except (RayActorError, DeploymentUnavailableError) as error:
        raise Lost(str(error)) from error
