"""What every gRPC client of Everloop does alike: opening a channel, and reading what an error is about."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

__all__ = ["MAX_MESSAGE_BYTES", "channel", "error_info"]

MAX_MESSAGE_BYTES = 32 * 1024 * 1024
"""Largest message, in bytes, that clients take and that services take unless they are set otherwise."""


def channel(address: str) -> grpc.Channel:
    """Opens a channel to `host:port` that asks no proxy, and soon finds a service that comes back."""
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_http_proxy", 0),
        ],
    )


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
