"""Channels to the other services: trace context goes along, failures come back as `EverloopError`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from everloop_runtime.errors import GRPC_CODES, EverloopError, Kind
from everloop_runtime.telemetry import trace_headers

__all__ = ["call", "channel"]

KINDS = {code: kind for kind, code in GRPC_CODES.items()} | {
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
}
Answer = TypeVar("Answer")


def channel(address: str, max_message_bytes: int = 32 * 1024 * 1024) -> grpc.Channel:
    """A channel to `host:port`; it reconnects quickly when the service comes back."""
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0),
        ],
    )


def call(method: Callable[..., Answer], request: Any, *, timeout: float) -> Answer:
    """Calls a unary method with a deadline in seconds and the current trace.

    Raises:
        EverloopError: what the service answered; kind unavailable if it did not.
    """
    try:
        return method(request, timeout=timeout, metadata=tuple(trace_headers().items()))
    except grpc.RpcError as error:
        answer = cast(grpc.Call, error)  # every RpcError of a call is one
        code = answer.code()
        reason, metadata = code.name, {}
        status = rpc_status.from_call(answer)
        for detail in status.details if status else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
        raise EverloopError(
            KINDS.get(code, Kind.INTERNAL), reason, answer.details() or code.name, **metadata
        ) from error
