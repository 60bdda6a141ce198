"""How long a caller over HTTP waits, which is said as over gRPC: `grpc-timeout`."""

from __future__ import annotations

from everloop_inference.rpc.metadata import timeout
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["seconds"]


def seconds(value: bytes) -> float:
    """Reads a header's value: at most eight digits and a unit.

    >>> seconds(b"250m")
    0.25

    Raises:
        EverloopError: kind invalid: it is none.
    """
    found = timeout(value)
    if found is None:
        message = "grpc-timeout is up to 8 digits and a unit: H, M, S, m, u or n"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field="grpc-timeout")
    return found
