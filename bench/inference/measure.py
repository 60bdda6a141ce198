"""One start of one server: its answers are checked, then every case is loaded for a while."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.inference.doors import Door
from bench.inference.load import Load, over_grpc, over_http
from bench.inference.running import Running, ServerFailed, ask, wait_for_answer
from bench.inference.servers import Server
from bench.inference.subject import Subject

__all__ = ["CONCURRENCY", "SIZES", "Case", "Sample", "measure", "ready", "sample", "verified"]

SIZES = {"single": 1, "batch64": 64}
CONCURRENCY = (1, 8, 32, 128)
WARM_UP_SECONDS = 1
SLOWEST = 500
"""Requests a second of the slowest server: many streams at once are given the time that it takes to end one of each."""
START_SECONDS = 180
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """What is measured: a door, the rows of a request, and how many ask at once."""

    door: str
    size: str
    callers: int

    def __str__(self) -> str:
        """As the keys of ratios name it."""
        return f"{self.door}.{self.size}.c{self.callers}"


@dataclass(frozen=True)
class Sample:
    """What one run of a case gave.

    Attributes:
        throughput: requests a second.
        p50: median latency in milliseconds; likewise p99.
        cpu: processor time of the server's whole process tree per request, in microseconds.
        beside: the same of what runs beside the server.
        errors: requests without a right answer.
    """

    throughput: float
    p50: float
    p99: float
    cpu: float
    beside: float
    errors: int

    def __str__(self) -> str:
        """For the person who waits."""
        return (
            f"{self.throughput:9.0f}/s  p50 {self.p50:8.2f} ms  p99 {self.p99:8.2f} ms"
            f"  CPU {self.cpu:6.0f} µs" + (f"  {self.errors} errors" if self.errors else "")
        )


def measure(
    server: Server,
    subject: Subject,
    work: Path,
    doors: Iterable[str],
    seconds: int,
    concurrency: Sequence[int] = CONCURRENCY,
) -> tuple[dict[Case, Sample], int]:
    """Starts a server, loads it with every case, and stops it.

    Returns:
        Samples by case, and the memory it had at the end, in bytes.

    Raises:
        ServerFailed: it did not start, gave a wrong answer, or ended.
    """
    samples = {}
    with ready(server, subject, work) as running:
        for name in [door for door in server.doors if door in doors]:
            for size in server.doors[name].sizes:
                body, answer = verified(running, server.doors[name], subject, SIZES[size])
                for callers in concurrency:
                    case = Case(name, size, callers)
                    load = _load(running, server.doors[name], body, answer, callers)
                    requests = callers * server.doors[name].messages
                    samples[case] = sample(running, load, max(seconds, requests // SLOWEST))
                    print(f"  {case!s:24} {samples[case]}", flush=True)
        memory = running.memory()
        running.settle()
        return samples, memory


@contextmanager
def ready(server: Server, subject: Subject, work: Path) -> Iterator[Running]:
    """Runs a server that answers right at every door."""
    with (
        tempfile.TemporaryDirectory(dir=work, ignore_cleanup_errors=True) as name,
        server.start(subject, Path(name)) as running,
    ):
        for door in server.doors.values():
            wait_for_answer(running, door, door.body(subject, 1), START_SECONDS)
            for size in door.sizes:
                verified(running, door, subject, SIZES[size])
        running.settle()
        yield running


def verified(running: Running, door: Door, subject: Subject, rows: int) -> tuple[bytes, bytes]:
    """Asks once; returns request and answer.

    Raises:
        ServerFailed: the answer is not right.
    """
    body = door.body(subject, rows)
    answer = ask(running, door, body)
    found = np.asarray(door.read(answer), dtype=np.float64).reshape(-1, 2)
    expected = subject.expected[:rows]
    if found.shape != expected.shape or not np.allclose(found, expected, rtol=0, atol=TOLERANCE):
        raise ServerFailed(f"{door.path} answers wrong:\n{found}\ninstead of\n{expected}")
    return body, answer


def sample(running: Running, load: Callable[[int], Load], seconds: int) -> Sample:
    """Loads a server for a while, after a warm-up that is not counted.

    Raises:
        ServerFailed: it ended.
    """
    load(WARM_UP_SECONDS)
    refused, cpu, beside = running.refused(), running.clock(), running.clock_beside()
    seen = load(seconds)
    used, used_beside = cpu.seconds(), beside.seconds()
    running.check()
    requests = max(seen.requests, 1)
    return Sample(
        throughput=seen.requests / seen.seconds,
        p50=seen.p50,
        p99=seen.p99,
        cpu=used / requests * 1e6,
        beside=used_beside / requests * 1e6,
        errors=seen.errors + running.refused() - refused,
    )


def _load(
    running: Running, door: Door, body: bytes, answer: bytes, callers: int
) -> Callable[[int], Load]:
    if door.protocol == "grpc":
        return lambda seconds: over_grpc(
            running.grpc, door.path, body, len(answer), callers, seconds, door.messages
        )
    return lambda seconds: over_http(running.http, [door.path], body, callers, seconds)
