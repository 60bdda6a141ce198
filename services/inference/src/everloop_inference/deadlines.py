"""How long a caller waits, as both doors say it: `grpc-timeout`, the header of gRPC's own wire format."""

from __future__ import annotations

import re
from typing import Final

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["seconds"]

_TIMEOUT: Final = re.compile(rb"^([0-9]{1,8})([HMSmun])$")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def seconds(value: bytes) -> float:
    """Reads a header's value: at most eight digits and a unit.

    >>> seconds(b"250m")
    0.25

    Raises:
        EverloopError: kind invalid: it is none.
    """
    found = _TIMEOUT.match(value)
    if found is None:
        message = "grpc-timeout is up to 8 digits and a unit: H, M, S, m, u or n"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field="grpc-timeout")
    return int(found[1]) * _UNITS[found[2]]
