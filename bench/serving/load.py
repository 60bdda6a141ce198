"""Load from h2load at both doors for a time that is known before; every request with its start and its latency."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.inference.doors import GRPC, native
from bench.inference.load import CONNECTIONS
from bench.inference.subject import Subject
from bench.serving.callers import DOORS
from bench.serving.models import MODEL
from everloop.stack.endpoints import Endpoints
from everloop_contracts.pipeline import Pipeline
from everloop_features import feeds_from_rows, inputs_of

__all__ = ["Requests", "Under", "loading"]

PATIENCE_SECONDS = 60


@dataclass(frozen=True)
class Requests:
    """What came of the requests at one door.

    Attributes:
        sent: when each was sent, in seconds since 1970.
        seconds: how long each took, in the same order.
        failed: requests without an answer, or with another status than 200.
    """

    sent: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    failed: int


@dataclass
class Under:
    """A load that runs; `requests` by door are there when its block has ended."""

    requests: dict[str, Requests] = field(default_factory=dict)


@contextmanager
def loading(
    there: Endpoints,
    pipeline: Pipeline,
    row: dict[str, Any],
    callers: int,
    rate: float,
    seconds: int,
) -> Iterator[Under]:
    """Asks about one row at both doors at once; the block's end waits for the load's.

    Args:
        there: where.
        pipeline: of the model.
        row: what is asked about.
        callers: at each door; over gRPC they share connections, as callers in one process share a channel.
        rate: requests a second at each door; 0 for as many as are answered.
        seconds: how long.
    """
    inputs = tuple(inputs_of(pipeline))
    expected = np.zeros((1, 2), np.float32)  # nobody compares here
    subject = Subject(Path(), inputs, [row], feeds_from_rows([row], inputs), expected)
    bodies = {"http": native().body(subject, 1), "grpc": _message(GRPC.body(subject, 1))}
    under = Under()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        running = {}
        for door in DOORS:
            (folder / door).write_bytes(bodies[door])
            running[door] = subprocess.Popen(
                _command(there, door, folder, callers, rate, seconds),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        try:
            yield under
            for door, process in running.items():
                output, _ = process.communicate(timeout=seconds + PATIENCE_SECONDS)
                under.requests[door] = _read(folder / f"{door}.log", output)
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                    process.communicate()


def _message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


def _command(
    there: Endpoints, door: str, folder: Path, callers: int, rate: float, seconds: int
) -> list[str]:
    if door == "http":
        clients, streams = callers, 1
        url = f"{there.inference_http_url}/v1/models/{MODEL}:predict"
        how = ["--h1", "--header=content-type: application/json"]
    else:
        clients = min(callers, CONNECTIONS)
        streams = callers // clients
        url = f"http://{there.inference_grpc}{GRPC.path}"
        how = ["--header=content-type: application/grpc", "--header=te: trailers"]
    pace = [f"--rps={rate / clients:g}"] if rate else []
    return [
        "h2load",
        "--threads=1",
        f"--clients={clients}",
        f"--max-concurrent-streams={streams}",
        f"--duration={seconds}",
        f"--data={folder / door}",
        f"--log-file={folder / door}.log",
        *how,
        *pace,
        url,
    ]


def _read(log: Path, output: str) -> Requests:
    """Takes the log and the summary.

    Raises:
        RuntimeError: h2load failed.
    """
    found = re.search(
        r"requests: \d+ total, .* (\d+) done, .* (\d+) failed, (\d+) errored, (\d+) timeout", output
    )
    if not found:
        raise RuntimeError(f"h2load said what is not understood:\n{output}")
    rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    answered = rows[rows[:, 1] == 200]
    # h2load counts what it abandons when its time is up neither as done nor as failed.
    failed = max(int(found[2]), len(rows) - len(answered))
    return Requests(answered[:, 0] / 1e6, answered[:, 2] / 1e6, failed)
