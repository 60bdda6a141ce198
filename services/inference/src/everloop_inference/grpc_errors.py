"""Errors as gRPC shows them: as what ends a call, as the end of a call that was passed on, and back."""

from __future__ import annotations

from typing import Final

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from everloop_inference.ports import RpcReply
from everloop_inference.rpc import Abort
from everloop_runtime.errors import CODES, KINDS, EverloopError, Kind, rich_status

__all__ = ["aborted", "failure", "replied"]

_DETAILS: Final = "grpc-status-details-bin"


def aborted(error: EverloopError) -> Abort:
    """The error as what ends a call."""
    status = rpc_status.to_status(rich_status(error))
    return Abort(status.code, status.details, status.trailing_metadata)


def replied(error: EverloopError) -> RpcReply:
    """The error as the end of a call that was passed on."""
    status = rich_status(error)
    return RpcReply(b"", status.code, status.message, ((_DETAILS, status.SerializeToString()),))


def failure(reply: RpcReply) -> EverloopError:
    """The error that made a call fail, as it was before it became a status."""
    kind = KINDS.get(CODES[reply.code], Kind.INTERNAL)
    reason, texts, retry = grpc.StatusCode.UNKNOWN.name, {}, 0.0
    for name, value in reply.metadata:
        if name != _DETAILS or not isinstance(value, bytes):
            continue
        info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(info):
                reason, texts = info.reason, dict(info.metadata)
            elif detail.Unpack(delay):
                retry = delay.retry_delay.ToNanoseconds() / 1e9
    return EverloopError(kind, reason, reply.details, **texts).after(retry)
