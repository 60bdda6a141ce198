"""How a call ends: a status code with its text and its details."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import grpc

from everloop_inference.rpc.metadata import Fields, Metadata, encode

__all__ = ["Abort", "trailers"]

_PRINTABLE: Final = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_CODES: Final = {code: (b"grpc-status", b"%d" % code.value[0]) for code in grpc.StatusCode}
_DONE: Final = [_CODES[grpc.StatusCode.OK]]
# What every client takes, unless told otherwise.
_MAX_BYTES: Final = 8 * 1024
_MAX_MESSAGE: Final = 1024


class Abort(grpc.aio.AbortError):
    """Ends a call with a status.

    A handler that is a plain function raises it; one that is a coroutine may call `context.abort` as well.
    """

    def __init__(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> None:
        """Takes what the caller is told."""
        super().__init__(code, details)
        self.code = code
        self.details = details
        self.trailing_metadata = trailing_metadata


def trailers(code: grpc.StatusCode, details: str, metadata: Metadata) -> Fields:
    """The fields that end a call; of what is too large for a client the code and some of the text are left.

    Raises:
        ValueError: the metadata cannot be sent.
    """
    if code is grpc.StatusCode.OK and not details and not metadata:
        return _DONE
    fields: Fields = [_CODES[code]]
    if details:
        fields.append((b"grpc-message", _message(details)))
    if metadata:
        fields += encode(metadata)
    if sum(len(name) + len(value) + 32 for name, value in fields) > _MAX_BYTES:
        return [_CODES[code], (b"grpc-message", _message(details[:_MAX_MESSAGE]))]
    return fields


def _message(text: str) -> bytes:
    return quote(text, safe=_PRINTABLE, errors="replace").encode()
