"""From the wire to `EverloopError`: gRPC statuses and HTTP answers in the same words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import grpc
import httpx
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from everloop.errors import EverloopError

__all__ = ["call", "channel", "check_http", "http_failure"]

Answer = TypeVar("Answer")

_UNREACHABLE = "see `everloop status` for what is up, `everloop up` to start it"
_ADVICE = {
    "UNAVAILABLE": _UNREACHABLE,
    "DEADLINE_EXCEEDED": "try again; `everloop status` shows whether the part is busy or down",
    "INTERNAL": "the part's log in <home>/logs has the details",
    "MODEL_NOT_FOUND": "`everloop models` lists what is served",
    "PREDICTION_NOT_FOUND": "the log arrives a moment after the answer: try again",
    "PIPELINE_NOT_FOUND": "`everloop status` lists the pipelines",
}


def channel(address: str, max_message_bytes: int = 32 * 1024 * 1024) -> grpc.Channel:
    """Opens a channel to `host:port`, on this network: no proxy is asked."""
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0),
        ],
    )


def call(method: Callable[..., Answer], request: Any, timeout: float) -> Answer:
    """Calls a unary method with a deadline in seconds.

    Raises:
        EverloopError: What the service answered, or that it did not.
    """
    try:
        return method(request, timeout=timeout)
    except grpc.RpcError as error:
        raise _from_grpc(error) from None


def _from_grpc(error: Any) -> EverloopError:
    reason, metadata = str(error.code().name), {}
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        info = error_details_pb2.ErrorInfo()
        try:
            details = status_pb2.Status.FromString(value).details
        except DecodeError:
            continue
        if any(detail.Unpack(info) for detail in details):
            reason, metadata = info.reason, dict(info.metadata)
    message = (error.details() or reason).splitlines()[0]
    if reason == "UNAVAILABLE":
        message = f"the service does not answer ({message})"
    return EverloopError(reason, message, _ADVICE.get(reason, ""), metadata)


def check_http(answer: httpx.Response) -> None:
    """Returns for a good answer.

    Raises:
        EverloopError: With the reason and message of the answer's body where it has them.
    """
    if answer.is_success:
        return
    try:
        body = answer.json()
        error = body.get("error", body)
        message = error if isinstance(error, str) else str(error.get("message") or body)
        reason = str(
            (error if isinstance(error, dict) else body).get("reason")
            or f"HTTP_{answer.status_code}"
        )
    except (ValueError, AttributeError):
        reason, message = f"HTTP_{answer.status_code}", answer.text[:200] or answer.reason_phrase
    raise EverloopError(reason, message, _ADVICE.get(reason, ""))


def http_failure(error: httpx.HTTPError) -> EverloopError:
    """Puts a connection that failed in the words of gRPC's UNAVAILABLE and DEADLINE_EXCEEDED."""
    reason = "DEADLINE_EXCEEDED" if isinstance(error, httpx.TimeoutException) else "UNAVAILABLE"
    return EverloopError(
        reason, f"the service does not answer ({error or type(error).__name__})", _ADVICE[reason]
    )
