"""Request ids: each stands for one request, whose repeat is answered as it was."""

from __future__ import annotations

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["checked", "reused"]

_LONGEST = 200


def checked(request_id: str) -> str:
    """The id itself.

    Raises:
        EverloopError: kind invalid, reason INVALID_REQUEST_ID.
    """
    if not 0 < len(request_id) <= _LONGEST:
        raise EverloopError(
            Kind.INVALID,
            "INVALID_REQUEST_ID",
            f"request_id takes 1 to {_LONGEST} characters",
            field="request_id",
        )
    return request_id


def reused() -> EverloopError:
    """What a request gets whose id stands for another one: kind conflict, reason REQUEST_ID_REUSED."""
    return EverloopError(
        Kind.CONFLICT,
        "REQUEST_ID_REUSED",
        "this request_id came with another request before; take a new one for each request",
        field="request_id",
    )
