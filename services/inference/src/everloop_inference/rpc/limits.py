"""What a gRPC server allows: every bound that holds against careless and hostile callers, by name."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["METADATA_EXCESS", "Limits"]

KIB, MIB = 1024, 1024 * 1024
METADATA_EXCESS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one server.

    Attributes:
        message_bytes: largest message, decompressed, either way; beyond it RESOURCE_EXHAUSTED.
        concurrent_calls: calls that the server holds at once; beyond it RESOURCE_EXHAUSTED.
        connections: connections at once; beyond it a new one is closed.
        streams: calls that one connection may have open; a client waits with more.
        metadata_bytes: headers of one call as HTTP/2 counts them; beyond it RESOURCE_EXHAUSTED, and beyond
            `METADATA_EXCESS` times as much the connection is closed.
        received_bytes: incomplete and unread messages of all connections together; beyond it RESOURCE_EXHAUSTED.
        unsent_bytes: answers of all connections together that their callers do not take; beyond it RESOURCE_EXHAUSTED,
            and connections that have taken nothing for `pressed_seconds` are closed.
        stream_window: bytes that a caller may send ahead on one call.
        connection_window: bytes that a caller may send ahead on one connection.
        write_bytes: output of a connection that waits for its socket; beyond it the connection is neither read nor
            written until the caller takes some.
        ahead_bytes: messages of one response stream that wait for the caller before its handler has to.
        control_frames: PING, SETTINGS and empty DATA frames that a connection may send in a second without a message.
        cancelled_calls: calls that a connection may cancel in a second, in the long run; beyond it it is told to go.
        handshake_seconds: time for the HTTP/2 preface.
        request_seconds: time for the one message of a unary request.
        stall_seconds: time for which a caller may leave its full socket unread.
        pressed_seconds: the same, and for unsent answers, when the server's `unsent_bytes` are used up.
        idle_seconds: time without a call after which a connection is told to go.
        age_seconds: time after which a connection is told to go, so that callers spread over new replicas.
        keepalive_seconds: silence after which a caller is asked for a sign of life.
        keepalive_timeout_seconds: time for that sign.
    """

    message_bytes: int = 4 * MIB
    concurrent_calls: int = 1024
    connections: int = 4096
    streams: int = 256
    metadata_bytes: int = 16 * KIB
    received_bytes: int = 256 * MIB
    unsent_bytes: int = 256 * MIB
    stream_window: int = 1 * MIB
    connection_window: int = 4 * MIB
    write_bytes: int = 256 * KIB
    ahead_bytes: int = 64 * KIB
    control_frames: int = 1000
    cancelled_calls: int = 200
    handshake_seconds: float = 10.0
    request_seconds: float = 60.0
    stall_seconds: float = 60.0
    pressed_seconds: float = 5.0
    idle_seconds: float = 300.0
    age_seconds: float = 3600.0
    keepalive_seconds: float = 60.0
    keepalive_timeout_seconds: float = 20.0
