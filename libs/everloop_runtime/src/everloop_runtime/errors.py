"""Errors as every door shows them: a kind that decides the status code, a reason that programs can match."""

from __future__ import annotations

from enum import StrEnum
from json import JSONDecodeError
from typing import Self

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2

__all__ = [
    "CODES",
    "GRPC_CODES",
    "HTTP_STATUS",
    "INTERNAL",
    "KINDS",
    "EverloopError",
    "Kind",
    "not_json",
    "rich_status",
    "waiting_mends",
]

DOMAIN = "everloop"


class Kind(StrEnum):
    """What sort of failure it is."""

    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    PRECONDITION = "precondition"
    UNAUTHENTICATED = "unauthenticated"
    DENIED = "denied"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


GRPC_CODES = {
    Kind.INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    Kind.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Kind.CONFLICT: grpc.StatusCode.ABORTED,
    Kind.PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Kind.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Kind.DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Kind.EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.DEADLINE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Kind.INTERNAL: grpc.StatusCode.INTERNAL,
}

KINDS = {code: kind for kind, code in GRPC_CODES.items()}

CODES = {code.value[0]: code for code in grpc.StatusCode}
"""Status codes by their number."""

HTTP_STATUS = {
    Kind.INVALID: 422,
    Kind.NOT_FOUND: 404,
    Kind.CONFLICT: 409,
    Kind.PRECONDITION: 412,
    Kind.UNAUTHENTICATED: 401,
    Kind.DENIED: 403,
    Kind.EXHAUSTED: 429,
    Kind.UNAVAILABLE: 503,
    Kind.DEADLINE: 504,
    Kind.UNIMPLEMENTED: 501,
    Kind.INTERNAL: 500,
}


class EverloopError(Exception):
    """A failure that the caller is told about.

    Attributes:
        kind: decides the gRPC code and the HTTP status.
        reason: upper-case code that programs can match, such as `MODEL_NOT_FOUND`.
        message: what is wrong and what to do, for a person.
        metadata: names and values that belong to the reason (`field`, `model`, …).
        retry_after: seconds after which asking again may help; 0 where that is not known.
    """

    def __init__(self, kind: Kind, reason: str, message: str, **metadata: str) -> None:
        """Takes the attributes in order."""
        super().__init__(message)
        self.kind = kind
        self.reason = reason
        self.message = message
        self.metadata = metadata
        self.retry_after = 0.0

    def after(self, seconds: float) -> Self:
        """Says when asking again may help; returns itself."""
        self.retry_after = seconds
        return self

    def __reduce__(self) -> tuple[object, ...]:
        """Survives pickling, which Ray does to exceptions."""
        return _rebuild, (self.kind, self.reason, self.message, self.retry_after, self.metadata)


INTERNAL = EverloopError(
    Kind.INTERNAL, "INTERNAL", "internal error; the server's log has the details"
)
"""What callers are told of an error that is a mistake in a service."""


def _rebuild(
    kind: Kind, reason: str, message: str, retry_after: float, metadata: dict[str, str]
) -> EverloopError:
    return EverloopError(kind, reason, message, **metadata).after(retry_after)


_PASSING = frozenset({Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE})


def waiting_mends(error: BaseException) -> bool:
    """True for a dependency that is away, busy or behind: asking again later is right, giving up is not.

    Whoever works off a queue decides by this what to wait for and what to count as a failed attempt.
    """
    return isinstance(error, EverloopError) and error.kind in _PASSING


def rich_status(error: EverloopError) -> status_pb2.Status:
    """The error as `google.rpc.Status` with exactly one `ErrorInfo`, and a `RetryInfo` where it says when to retry."""
    code = code_pb2.Code.Value(GRPC_CODES[error.kind].name)
    status = status_pb2.Status(code=code, message=error.message)
    status.details.add().Pack(
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    )
    if error.retry_after:
        delay = error_details_pb2.RetryInfo()
        delay.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
        status.details.add().Pack(delay)
    return status


def not_json(error: JSONDecodeError) -> str:
    """What keeps a document from being JSON, and what to send for the numbers that it has no word for.

    >>> import json
    >>> try:
    ...     json.loads('[nope]')
    ... except json.JSONDecodeError as error:
    ...     print(not_json(error))
    Expecting value: line 1 column 2 (char 1)
    """
    near = error.doc[max(error.pos - 1, 0) :].lstrip("-[{:, ")
    unknown = near.startswith(("NaN", "Infinity"))
    return f"{error}{'; JSON has no NaN and no Infinity: send null' if unknown else ''}"
