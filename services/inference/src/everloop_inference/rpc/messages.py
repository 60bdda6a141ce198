"""gRPC's length-prefixed messages: put together from DATA frames, decompressed, and back."""

from __future__ import annotations

import zlib
from typing import Final

import grpc

from everloop_inference.rpc.status import Abort

__all__ = ["ACCEPTED", "ENCODINGS", "Inbox", "frame", "unpack"]

_PREFIX: Final = 5
ENCODINGS: Final = {b"gzip": 31, b"deflate": 15}
"""Compressions of messages, with zlib's name for their container."""
ACCEPTED: Final = b"identity,deflate,gzip"
"""Value of `grpc-accept-encoding`."""


class Inbox:
    """The messages of one call, in the pieces in which they come."""

    __slots__ = ("_buffer", "_limit", "_needed")

    def __init__(self, limit: int) -> None:
        """Takes the largest length that a message may have on the wire."""
        self._limit = limit
        self._buffer = bytearray()
        self._needed = _PREFIX

    def __len__(self) -> int:
        """Bytes of the message that is incomplete."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        """Takes what came, and returns the messages that it completes: whether each is compressed, and its bytes.

        Raises:
            Abort: RESOURCE_EXHAUSTED: a message is too large; INTERNAL: it is no message.
        """
        buffer = self._buffer
        if buffer:
            buffer += data
            if len(buffer) < self._needed:
                return []
            data = bytes(buffer)
            buffer.clear()
        messages: list[tuple[bool, bytes]] = []
        position, end = 0, len(data)
        self._needed = _PREFIX
        while end - position >= _PREFIX:
            flag = data[position]
            length = int.from_bytes(data[position + 1 : position + _PREFIX])
            if flag > 1:
                raise Abort(grpc.StatusCode.INTERNAL, f"a message begins with the flag {flag}")
            if length > self._limit:
                raise too_large("received", length, self._limit)
            stop = position + _PREFIX + length
            if stop > end:
                self._needed = stop - position
                break
            messages.append((flag == 1, data[position + _PREFIX : stop]))
            position = stop
        if position < end:
            buffer += memoryview(data)[position:]
        return messages


def too_large(done: str, length: int, limit: int) -> Abort:
    """The refusal of a message, in the words of grpcio's servers."""
    text = f"{done.capitalize()} message larger than max ({length} vs. {limit})"
    return Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)


def unpack(data: bytes, encoding: bytes | None, limit: int) -> bytes:
    """Decompresses a message.

    Raises:
        Abort: INTERNAL: the call named no compression, or the bytes are damaged; RESOURCE_EXHAUSTED: it is too large.
    """
    container = ENCODINGS.get(encoding or b"identity")
    if container is None:
        raise Abort(
            grpc.StatusCode.INTERNAL, "a message is compressed, but the call says nothing of it"
        )
    machine = zlib.decompressobj(container)
    try:
        plain = machine.decompress(data, limit + 1)
    except zlib.error as error:
        raise Abort(grpc.StatusCode.INTERNAL, "a message cannot be decompressed") from error
    if len(plain) > limit:
        raise too_large("decompressed", len(plain), limit)
    if not machine.eof or machine.unused_data:
        raise Abort(grpc.StatusCode.INTERNAL, "a message cannot be decompressed")
    return plain


def frame(message: bytes, encoding: bytes | None = None) -> bytes:
    """A message as it travels; compressed if an encoding is given."""
    if encoding is None:
        return b"\0" + len(message).to_bytes(4) + message
    machine = zlib.compressobj(wbits=ENCODINGS[encoding])
    packed = machine.compress(message) + machine.flush()
    return b"\1" + len(packed).to_bytes(4) + packed
