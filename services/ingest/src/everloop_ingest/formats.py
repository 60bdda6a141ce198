"""What the body of a message may be: a JSON object, or a Protobuf `everloop.ingest.v1.Record`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError

from everloop_contracts.stubs.everloop.ingest.v1.record_pb2 import Record, Value

__all__ = ["CONTENT_TYPE", "PROTOBUF", "from_protobuf", "is_protobuf"]

CONTENT_TYPE = "content-type"
PROTOBUF = b"application/x-protobuf"
_PROTOBUF = (PROTOBUF, b"application/protobuf", b"application/vnd.google.protobuf")


def is_protobuf(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether a message's headers say that its body is Protobuf; any other body is read as JSON."""
    for name, value in headers:
        if name.lower() == CONTENT_TYPE and value:
            return value.partition(b";")[0].strip().lower() in _PROTOBUF
    return False


def from_protobuf(body: bytes) -> dict[str, Any]:
    """The record as JSON would give it: times are RFC 3339 texts.

    Raises:
        google.protobuf.message.DecodeError: the body is no `Record`.
    """
    record = Record.FromString(body)
    if not record.fields and body:
        raise DecodeError("no field of everloop.ingest.v1.Record is in it")
    return {name: _plain(value) for name, value in record.fields.items()}


def _plain(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    if kind != "timestamp_value":
        return getattr(value, kind)
    try:
        return value.timestamp_value.ToJsonString()
    except ValueError:  # beyond the years that a time has: no time, and rejected as such
        return f"{value.timestamp_value.seconds} s"
