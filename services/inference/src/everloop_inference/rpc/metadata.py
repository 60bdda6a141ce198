"""gRPC's conventions on HTTP/2 header fields: metadata, binary values, timeouts."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

__all__ = ["Fields", "Metadata", "decode", "encode", "timeout"]

Fields: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields as HTTP/2 sends them."""
Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]
"""Metadata as handlers see it; the values of names that end in `-bin` are bytes."""

_RESERVED: Final = frozenset(
    {
        b":method",
        b":scheme",
        b":path",
        b":authority",
        b"te",
        b"content-type",
        b"content-length",
        b"grpc-timeout",
        b"grpc-encoding",
        b"grpc-accept-encoding",
    }
)
_NAME: Final = re.compile(r"[0-9a-z_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
_TIMEOUT: Final = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}


def decode(fields: Iterable[tuple[bytes, bytes]]) -> Metadata:
    """The metadata among the header fields of a request; binary values that are no base64 are left out."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in fields:
        if name in _RESERVED:
            continue
        key = name.decode("latin-1")
        if not name.endswith(b"-bin"):
            found.append((key, value.decode("latin-1")))
            continue
        for part in value.split(b","):
            try:
                found.append((key, binascii.a2b_base64(part + b"=" * (-len(part) % 4))))
            except binascii.Error:
                continue
    return tuple(found)


def encode(metadata: Metadata) -> Fields:
    """Header fields for metadata.

    Raises:
        ValueError: a name or a value that gRPC does not allow.
    """
    fields: Fields = []
    for name, value in metadata:
        if not _NAME.fullmatch(name) or (
            name.startswith("grpc-") and name != "grpc-status-details-bin"
        ):
            raise ValueError(f"metadata cannot be named {name!r}")
        if name.endswith("-bin"):
            raw = value.encode() if isinstance(value, str) else value
            fields.append((name.encode(), binascii.b2a_base64(raw, newline=False).rstrip(b"=")))
            continue
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if not _VALUE.fullmatch(text):
            raise ValueError(f"the value of metadata {name!r} must be printable ASCII")
        fields.append((name.encode(), text.strip().encode()))
    return fields


def timeout(value: bytes) -> float | None:
    """Seconds that `grpc-timeout` leaves; None for what is malformed."""
    match = _TIMEOUT.fullmatch(value)
    return int(match[1]) * _UNITS[match[2]] if match else None
