"""Pages of lists that are ordered by a position, newest first."""

from __future__ import annotations

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["page"]

DEFAULT_SIZE = 50
LARGEST_SIZE = 500
_DIGITS = 18  # fits 64 bits in every database


def page(token: str, size: int) -> tuple[int | None, int]:
    """Position that the page starts below, and its size; a token is the position of the last item before it.

    >>> page("", 0)
    (None, 50)
    >>> page("17", 10_000)
    (17, 500)

    Raises:
        EverloopError: kind invalid, reason INVALID_PAGE: a negative size, or a token that was not given out.
    """
    if size < 0:
        raise EverloopError(
            Kind.INVALID, "INVALID_PAGE", "page_size is negative", field="page_size"
        )
    if token and not (token.isascii() and token.isdigit() and len(token) <= _DIGITS):
        raise EverloopError(
            Kind.INVALID, "INVALID_PAGE", "page_token is none of ours", field="page_token"
        )
    return (int(token) if token else None), min(size or DEFAULT_SIZE, LARGEST_SIZE)
