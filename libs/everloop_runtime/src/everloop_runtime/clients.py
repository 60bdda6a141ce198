"""Channels to the other services: trace context goes along, failures come back as `EverloopError`."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

import grpc

from everloop_contracts.grpc_client import channel, error_info
from everloop_runtime.errors import KINDS, EverloopError, Kind
from everloop_runtime.telemetry import trace_headers

__all__ = ["call", "channel", "stream"]

_KINDS = KINDS | {
    grpc.StatusCode.CANCELLED: Kind.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Kind.UNAVAILABLE,
}
_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
Answer = TypeVar("Answer")


def call(method: Callable[..., Answer], request: Any, *, timeout: float) -> Answer:
    """Calls a unary method with a deadline in seconds and the current trace.

    Raises:
        EverloopError: what the service answered; kind unavailable if it did not.
    """
    try:
        return method(request, timeout=timeout, metadata=tuple(trace_headers().items()))
    except grpc.RpcError as error:
        raise _failure(error) from error


def stream(
    method: Callable[..., Any], request: Any, *, timeout: float
) -> Generator[Any, None, None]:
    """Calls a method that answers with a stream, with a deadline in seconds for all of it and the current trace.

    The call is cancelled when the iterator is closed.

    Raises:
        EverloopError: what the service answered; kind unavailable if it did not.
    """
    answers = method(request, timeout=timeout, metadata=tuple(trace_headers().items()))
    try:
        yield from answers
    except grpc.RpcError as error:
        raise _failure(error) from error
    finally:
        answers.cancel()


def _failure(error: grpc.RpcError) -> EverloopError:
    answer = cast(grpc.Call, error)  # every RpcError of a call is one
    code = answer.code()
    reason, metadata = error_info(answer)
    if code in _REFUSED:
        # It is our token that is wrong, not that of whoever asked us; and somebody will mend it.
        text = f"another service does not let this one in: {answer.details()} [{reason}]"
        return EverloopError(Kind.UNAVAILABLE, "SERVICE_REFUSED", text)
    return EverloopError(
        _KINDS.get(code, Kind.INTERNAL), reason, answer.details() or code.name, **metadata
    )
