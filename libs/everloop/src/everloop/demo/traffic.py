"""The client of the demo: asks for a prediction of every flight, in time order, at a steady pace, to the end.

It asks over gRPC and HTTP in turn, with rows (the native API) and now and then with tensors (the Open Inference
Protocol), and keeps books of what was sent, what failed and how long it took.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
import numpy as np

from everloop.addresses import Addresses
from everloop.demo.flights import Flights
from everloop.demo.tensors import Columns, from_grpc, from_json, to_grpc, to_json
from everloop_contracts.grpc_client import channel
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2, inference_pb2_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc

__all__ = ["DOORS", "Door", "Tally", "Traffic"]

DOORS = ("grpc", "http", "oip_grpc", "oip_http")
"""Rows over gRPC and HTTP; tensors over gRPC and HTTP."""
TENSOR_EVERY = 16
"""Of so many requests, the last two go as tensors."""
DEADLINE_SECONDS = 15.0
SPARED_SHARE = 0.25
"""Share of the flights that is spared for what is still awaited: from there on the pace falls with what is left."""
KEPT_ERRORS = 10


@dataclass
class Door:
    """Books of one door."""

    requests: int = 0
    sent: int = 0
    failed: int = 0
    seconds: list[float] = field(default_factory=list)

    def milliseconds(self, share: float) -> float | None:
        """Returns the latency below which a share of the requests stayed; None before the first."""
        return float(np.quantile(self.seconds, share)) * 1000 if self.seconds else None


@dataclass(frozen=True)
class Answer:
    """What came back for a batch of rows."""

    version: int
    scores: Sequence[float]
    ids: Sequence[str] = ()


@dataclass(frozen=True)
class FirstAnswer:
    """The first answer of a model version.

    Attributes:
        time: When it arrived.
        row: Position of its first flight.
        prediction_id: Id of its last prediction; empty while only tensors were answered, which bring none along.
    """

    time: datetime
    row: int
    prediction_id: str


@dataclass
class Tally:
    """Books of all doors.

    Attributes:
        doors: By name.
        first: The first answer of each version.
        ids: Of each version one prediction id, the last of its first answer that brought any.
        errors: The first few failures, in words.
    """

    doors: dict[str, Door] = field(default_factory=lambda: {name: Door() for name in DOORS})
    first: dict[int, FirstAnswer] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def sent(self) -> int:
        """Predictions asked for."""
        return sum(door.sent for door in self.doors.values())

    @property
    def failed(self) -> int:
        """Predictions that were not given."""
        return sum(door.failed for door in self.doors.values())


class Traffic:
    """Sends the flights from `first` on, a batch every `batch / rate` seconds.

    While `sparing`, the last quarter of them goes at a pace that falls with what is left of it: the year does not end
    before a slow machine has trained its model, and the questions never cease.

    Attributes:
        sparing: Whether something is awaited that must happen before the flights end; anybody may set it.
    """

    def __init__(
        self,
        flights: Flights,
        columns: Columns,
        first: int,
        addresses: Addresses,
        model: str,
        *,
        rate: float,
        batch: int = 64,
        senders: int = 4,
    ) -> None:
        """Takes what to send, where to, rows per second, rows per request and requests at once."""
        self._flights = flights
        self._columns = columns
        self._first = first
        self._addresses = addresses
        self._model = model
        self._seconds_per_batch = batch / rate
        self._batch = batch
        self._batches = math.ceil((len(flights) - first) / batch)
        self._next = 0
        self._due = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._send_all, name=f"traffic {number}", daemon=True)
            for number in range(senders)
        ]
        self.sparing = False
        self.tally = Tally()
        self.scores = np.full(len(flights), np.nan, dtype=np.float32)
        self.versions = np.zeros(len(flights), dtype=np.int32)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Begins."""
        self._due = time.monotonic()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends after the requests under way."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=DEADLINE_SECONDS)

    @property
    def position(self) -> int:
        """Flights that have been asked about, from the year's first one."""
        return min(self._first + self._next * self._batch, len(self._flights))

    @property
    def pace(self) -> float:
        """Share of the asked rate at which the next flights go: 1 but for the last of them while `sparing`."""
        left = (self._batches - self._next) / (self._batches * SPARED_SHARE)
        return min(1.0, max(left, 1 / self._batches)) if self.sparing else 1.0

    @property
    def finished(self) -> bool:
        """True when every flight was asked about and answered, or failed."""
        return self._next >= self._batches and not any(t.is_alive() for t in self._threads)

    def _claim(self) -> int | None:
        with self._lock:
            number = self._next
            if number >= self._batches:
                return None
            self._next += 1
            due = self._due
            self._due += self._seconds_per_batch / self.pace
        return None if self._stop.wait(max(0.0, due - time.monotonic())) else number

    def _send_all(self) -> None:
        address = self._addresses.inference_grpc
        try:
            with (
                channel(address, self._addresses.token) as connection,
                httpx.Client(
                    base_url=self._addresses.inference_http_url,
                    headers=self._addresses.headers,
                    timeout=DEADLINE_SECONDS,
                    trust_env=False,
                ) as http,
            ):
                doors = self._doors(connection, http)
                while (number := self._claim()) is not None:
                    name = door_of(number)
                    start = self._first + number * self._batch
                    self._send(
                        name, doors[name], start, min(start + self._batch, len(self._flights))
                    )
        except Exception as error:
            self.failure = error

    def _send(self, name: str, ask: Callable[[int, int], Answer], start: int, stop: int) -> None:
        began = time.perf_counter()
        answer, error = None, ""
        try:
            answer = ask(start, stop)
            if len(answer.scores) != stop - start:
                error = f"{len(answer.scores)} answers for {stop - start} rows"
        except (grpc.RpcError, httpx.HTTPError, ValueError, KeyError, StopIteration) as failure:
            error = " ".join(str(failure).split())[:300] or type(failure).__name__
        seconds = time.perf_counter() - began
        with self._lock:
            door = self.tally.doors[name]
            door.requests += 1
            door.sent += stop - start
            door.seconds.append(seconds)
            if error or answer is None:
                door.failed += stop - start
                if len(self.tally.errors) < KEPT_ERRORS:
                    self.tally.errors.append(f"{name}, rows {start} to {stop}: {error}")
                return
            self._keep(answer, start, stop)

    def _keep(self, answer: Answer, start: int, stop: int) -> None:
        self.scores[start:stop] = answer.scores
        self.versions[start:stop] = answer.version
        last = answer.ids[-1] if answer.ids else ""
        if answer.version not in self.tally.first:
            self.tally.first[answer.version] = FirstAnswer(datetime.now(UTC), start, last)
        if last:
            self.tally.ids.setdefault(answer.version, last)

    def _doors(
        self, connection: grpc.Channel, http: httpx.Client
    ) -> dict[str, Callable[[int, int], Answer]]:
        rows = inference_pb2_grpc.InferenceServiceStub(connection)
        tensors = grpc_service_pb2_grpc.GRPCInferenceServiceStub(connection)

        def grpc_rows(start: int, stop: int) -> Answer:
            request = inference_pb2.PredictRequest(model=self._model)
            for line in self._flights.lines[start:stop]:
                request.rows.add().update(json.loads(line))
            answer = rows.Predict(request, timeout=DEADLINE_SECONDS)
            predictions = answer.predictions
            return Answer(
                answer.version,
                [item.score for item in predictions],
                [item.prediction_id for item in predictions[-1:]],
            )

        def http_rows(start: int, stop: int) -> Answer:
            body = b'{"rows":[' + b",".join(self._flights.lines[start:stop]) + b"]}"
            answer = _post(http, f"/v1/models/{self._model}:predict", body)
            predictions = answer["predictions"]
            return Answer(
                int(answer["version"]),
                [item["score"] for item in predictions],
                [item["prediction_id"] for item in predictions[-1:]],
            )

        def grpc_tensors(start: int, stop: int) -> Answer:
            request = to_grpc(self._model, self._columns.rows(start, stop))
            return Answer(*from_grpc(tensors.ModelInfer(request, timeout=DEADLINE_SECONDS)))

        def http_tensors(start: int, stop: int) -> Answer:
            body = to_json(self._columns.rows(start, stop))
            return Answer(*from_json(_post(http, f"/v2/models/{self._model}/infer", body)))

        return dict(zip(DOORS, (grpc_rows, http_rows, grpc_tensors, http_tensors), strict=True))


def door_of(number: int) -> str:
    """Returns the door of request `number`: gRPC and HTTP in turn, with tensors at the end of every `TENSOR_EVERY`."""
    return DOORS[number % 2 + (2 if number % TENSOR_EVERY >= TENSOR_EVERY - 2 else 0)]


def _post(http: httpx.Client, path: str, body: bytes) -> Any:
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    if not answer.is_success:
        raise ValueError(f"HTTP {answer.status_code}: {answer.text[:200]}")
    return answer.json()
