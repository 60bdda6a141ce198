"""The one error that users of the client and the command see."""

from __future__ import annotations

__all__ = ["EverloopError"]


class EverloopError(Exception):
    """What was asked could not be done.

    Attributes:
        reason: Upper-case code that programs can match, such as `MODEL_NOT_FOUND`.
        message: What is wrong.
        advice: What to do about it; may be empty.
        metadata: Names and values that belong to the reason (`field`, `model`, …).
    """

    def __init__(
        self, reason: str, message: str, advice: str = "", metadata: dict[str, str] | None = None
    ) -> None:
        super().__init__(f"{message}: {advice}" if advice else message)
        self.reason = reason
        self.message = message
        self.advice = advice
        self.metadata = metadata or {}
