"""Requests of a stream: several are answered at a time, each as soon as it can be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

__all__ = ["answered"]

Request = TypeVar("Request")
Response = TypeVar("Response")


async def answered(
    requests: AsyncIterable[Request],
    begin: Callable[[Request, Callable[[Response], None]], asyncio.Future[Any] | None],
    limit: int,
    is_crowded: Callable[[], bool] = lambda: False,
) -> AsyncIterator[Response]:
    """Yields the responses in the order in which they come; whoever stops listening cancels the rest.

    Args:
        requests: is read only while there is room.
        begin: takes a request and what is to be called with its response once; where that is later, returns what can
            be cancelled.
        limit: requests that may be without a response.
        is_crowded: whether a request should wait for others. One request of the stream always has its turn.
    """
    free = asyncio.Semaphore(limit)
    responses: asyncio.Queue[Response | None] = asyncio.Queue()
    running: set[asyncio.Future[Any]] = set()
    answered = asyncio.Event()

    def respond(response: Response) -> None:
        responses.put_nowait(response)
        answered.set()

    async def read() -> None:
        async for request in requests:
            await free.acquire()
            while running and is_crowded():
                answered.clear()
                await answered.wait()
            answer = begin(request, respond)
            if answer is not None:
                running.add(answer)
                answer.add_done_callback(running.discard)
        for _ in range(limit):  # until every response has left
            await free.acquire()

    reading = asyncio.ensure_future(read())
    reading.add_done_callback(lambda _: responses.put_nowait(None))
    try:
        while (response := await responses.get()) is not None:
            yield response
            free.release()
        await reading
    finally:
        reading.cancel()
        for unfinished in running:
            unfinished.cancel()
