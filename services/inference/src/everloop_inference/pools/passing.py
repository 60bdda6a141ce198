"""Requests as they are passed from one process to another: what a door read, and what it is to write."""

from __future__ import annotations

from typing import NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2

from everloop_inference.rpc.metadata import Metadata
from everloop_runtime.errors import GRPC_CODES, EverloopError, Kind

__all__ = ["HttpReply", "HttpRequest", "RpcReply", "RpcRequest", "failure"]

Headers = tuple[tuple[bytes, bytes], ...]

_KINDS = {code.value[0]: kind for kind, code in GRPC_CODES.items()}
_STATUS = "grpc-status-details-bin"


class HttpRequest(NamedTuple):
    """A request over HTTP.

    Attributes:
        method: of HTTP.
        path: without host and query.
        headers: names in lower case.
        body: as it came, still compressed where a header says so.
    """

    method: str
    path: str
    headers: Headers
    body: bytes


class HttpReply(NamedTuple):
    """The answer to it.

    Attributes:
        status: of HTTP.
        headers: without those of the connection and the length.
        body: as it goes out.
    """

    status: int
    headers: Headers
    body: bytes


class RpcRequest(NamedTuple):
    """A unary call of gRPC.

    Attributes:
        path: `/package.Service/Method`.
        message: the request, serialized.
        metadata: what the caller sent beside it.
        seconds: time until its deadline; None where it has none.
    """

    path: str
    message: bytes
    metadata: Metadata = ()
    seconds: float | None = None


class RpcReply(NamedTuple):
    """How it ended.

    Attributes:
        message: the response, serialized; empty where the call failed.
        code: number of the status code.
        details: text of the status.
        metadata: trailing metadata, with the details of an error.
    """

    message: bytes
    code: int = 0
    details: str = ""
    metadata: Metadata = ()


def failure(reply: RpcReply) -> EverloopError:
    """The error that made a call fail, as it was before it became a status."""
    kind = _KINDS.get(reply.code, Kind.INTERNAL)
    reason, texts, retry = grpc.StatusCode.UNKNOWN.name, {}, 0.0
    for name, value in reply.metadata:
        if name != _STATUS or not isinstance(value, bytes):
            continue
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(info):
                reason, texts = info.reason, dict(info.metadata)
            elif detail.Unpack(delay):
                retry = delay.retry_delay.ToNanoseconds() / 1e9
    return EverloopError(kind, reason, reply.details, **texts).after(retry)
