"""Who asks without a socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from google.rpc import status_pb2

from everloop_inference.domain import Answer, Call
from everloop_inference.http.app import HttpApp
from everloop_inference.predict import Predictor
from everloop_inference.rpc import Abort

__all__ = ["Caller", "ask", "request", "told"]


def ask(
    predictor: Predictor, rows: Sequence[Mapping[str, Any]], name: str = "flights", size: int = 0
) -> Answer:
    """Predicts rows on an event loop of its own; for a predictor that nobody else uses meanwhile."""

    async def asking() -> Answer:
        return await predictor.rows(name, rows, Call(time.perf_counter(), size))

    return asyncio.run(asking())


async def request(
    app: HttpApp, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Asks the HTTP application without a socket; returns status, headers and body."""
    messages: list[dict[str, Any]] = []
    waiting: list[dict[str, Any]] = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()  # the caller stays
        return waiting.pop()

    async def send(message: MutableMapping[str, Any]) -> None:
        messages.append(dict(message))

    named = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    await app({"method": method, "path": path, "headers": named}, receive, send)
    start, content = messages
    answered = {name.decode(): text.decode() for name, text in start["headers"]}
    return start["status"], answered, content["body"]


class Caller:
    """The context of a gRPC call without a channel: somebody who waits for so many seconds."""

    def __init__(self, seconds: float | None = None) -> None:
        """Takes the time until the deadline."""
        self._seconds = seconds

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Nothing."""
        return ()

    def time_remaining(self) -> float | None:
        """Time until the deadline."""
        return self._seconds


def told(refusal: Abort) -> status_pb2.Status:
    """What a refused caller is told, with its details."""
    return status_pb2.Status.FromString(dict(refusal.trailing_metadata)["grpc-status-details-bin"])
