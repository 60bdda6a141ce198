"""Callers who read every answer: over HTTP and gRPC, each with a connection of its own, at a steady pace."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import uvloop

from bench.serving.models import MODEL
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2, inference_pb2_grpc

__all__ = ["DOORS", "Answer", "Callers", "calling"]

DOORS = ("http", "grpc")
PATIENCE_SECONDS = 30.0
JOIN_SECONDS = 2 * PATIENCE_SECONDS


@dataclass(frozen=True, slots=True)
class Answer:
    """One request and what came of it.

    Attributes:
        door: `http` or `grpc`.
        caller: whose it was; a caller's connection stays with one replica.
        sent: when, in seconds since 1970.
        latency: seconds until the whole answer was there.
        version: that answered; 0 where nobody did.
        prediction_id: empty where there is none.
        score: that was given.
        error: why there is no answer; empty if there is one.
    """

    door: str
    caller: int
    sent: float
    latency: float
    version: int = 0
    prediction_id: str = ""
    score: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Callers:
    """How many call, and how often.

    Attributes:
        each: callers at each door.
        rate: requests a second at each door, by all of its callers.
    """

    each: int
    rate: float


Ask = Callable[[], Awaitable[tuple[int, str, float]]]


@contextmanager
def calling(
    http: str, grpc_address: str, row: dict[str, Any], callers: Callers
) -> Iterator[list[Answer]]:
    """Calls as long as the block runs; yields the answers, to which more are added meanwhile."""
    answers: list[Answer] = []
    stop = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_call(http, grpc_address, row, callers, answers, stop))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="callers", daemon=True)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join(JOIN_SECONDS)
    if failed:
        raise failed[0]
    if thread.is_alive():
        raise RuntimeError("the callers do not end")


async def _call(
    http: str,
    grpc_address: str,
    row: dict[str, Any],
    callers: Callers,
    answers: list[Answer],
    stop: threading.Event,
) -> None:
    makers: dict[str, Callable[[], _Http | _Grpc]] = {
        "http": lambda: _Http(http, row),
        "grpc": lambda: _Grpc(grpc_address, row),
    }
    pause = callers.each / callers.rate
    async with asyncio.TaskGroup() as group:
        for number in range(callers.each):
            for door, make in makers.items():
                first = number * pause / callers.each
                group.create_task(_paced(door, number, make(), first, pause, answers, stop))


async def _paced(
    door: str,
    caller: int,
    client: _Http | _Grpc,
    first: float,
    pause: float,
    answers: list[Answer],
    stop: threading.Event,
) -> None:
    due = time.monotonic() + first
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        # A caller who was held up goes on at the pace; it does not make up for what it missed.
        due = max(due + pause, time.monotonic())
        sent, began = time.time(), time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                version, name, score = await client.ask()
        except Exception as error:  # whatever went wrong, the caller has no answer
            answers.append(
                Answer(door, caller, sent, time.perf_counter() - began, error=repr(error))
            )
            client.reset()
            continue
        latency = time.perf_counter() - began
        answers.append(Answer(door, caller, sent, latency, version, name, score))
    await client.close()


class _Http:
    """A caller over HTTP/1.1 with a connection that is kept."""

    def __init__(self, address: str, row: dict[str, Any]) -> None:
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        body = json.dumps({"rows": [row]}).encode()
        head = f"POST /v1/models/{MODEL}:predict HTTP/1.1\r\nHost: {address}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._request = head.encode() + body
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self) -> tuple[int, str, float]:
        """Returns version, prediction id and score."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].partition("\r\n")[0])
        body = await reader.readexactly(length)
        if not head.startswith("http/1.1 200"):
            raise RuntimeError(f"{head.splitlines()[0]}: {body[:200]!r}")
        answer = json.loads(body)
        first = answer["predictions"][0]
        return int(answer["version"]), str(first["prediction_id"]), float(first["score"])

    def reset(self) -> None:
        """Gives the connection up; the next question makes another."""
        if self._streams:
            self._streams[1].close()
        self._streams = None

    async def close(self) -> None:
        """Ends it."""
        self.reset()


class _Grpc:
    """A caller over gRPC with a channel that is not shared."""

    def __init__(self, address: str, row: dict[str, Any]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        stub: Any = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._predict = stub.Predict
        self._request = inference_pb2.PredictRequest(model=MODEL)
        self._request.rows.add().update(row)

    async def ask(self) -> tuple[int, str, float]:
        """Returns version, prediction id and score."""
        answer = await self._predict(self._request)
        first = answer.predictions[0]
        return int(answer.version), str(first.prediction_id), float(first.score)

    def reset(self) -> None:
        """Does nothing: a channel mends itself."""

    async def close(self) -> None:
        """Ends it."""
        await self._channel.close()
