"""What every gRPC client of Everloop does alike: opening a channel, and reading what an error is about."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

__all__ = ["MAX_MESSAGE_BYTES", "channel", "error_info"]

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest message, in bytes, that clients take and that services take unless they are set otherwise."""


class _Bearer(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Shows a token with every call. gRPC's own call credentials want TLS, which here ends in front of the services."""

    def __init__(self, token: str) -> None:
        self._header = ("authorization", f"Bearer {token}")

    def _with_token(self, proceed: Any, details: Any, request: Any) -> Any:
        metadata = (*(details.metadata or ()), self._header)
        return proceed(_Details(details, metadata), request)

    def intercept_unary_unary(self, proceed: Any, details: Any, request: Any) -> Any:
        return self._with_token(proceed, details, request)

    def intercept_unary_stream(self, proceed: Any, details: Any, request: Any) -> Any:
        return self._with_token(proceed, details, request)

    def intercept_stream_unary(self, proceed: Any, details: Any, requests: Any) -> Any:
        return self._with_token(proceed, details, requests)

    def intercept_stream_stream(self, proceed: Any, details: Any, requests: Any) -> Any:
        return self._with_token(proceed, details, requests)


class _Details(grpc.ClientCallDetails):
    """The details of a call, with other metadata."""

    def __init__(self, details: grpc.ClientCallDetails, metadata: Any) -> None:
        self.method = details.method
        self.timeout = details.timeout
        self.metadata = metadata
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


def channel(address: str, token: str = "") -> grpc.Channel:
    """Opens a channel to `host:port` that asks no proxy, and soon finds a service that comes back.

    Where there is a token, every call shows it.
    """
    opened = grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0),
        ],
    )
    return grpc.intercept_channel(opened, _Bearer(token)) if token else opened


def error_info(error: grpc.Call) -> tuple[str, dict[str, str]]:
    """Returns reason and metadata of an error's `ErrorInfo`; the status code's name where it has none."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        info = error_details_pb2.ErrorInfo()
        try:
            details = status_pb2.Status.FromString(value).details
        except DecodeError:
            continue
        if any(detail.Unpack(info) for detail in details):
            return info.reason, dict(info.metadata)
    return str(error.code().name), {}
