"""Load from h2load at both doors; every request with its start and its latency."""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt

from bench.inference.doors import GRPC, native
from bench.inference.load import CONNECTIONS
from bench.inference.subject import Subject
from bench.serving.callers import DOORS
from bench.serving.models import MODEL
from everloop.stack.endpoints import Endpoints
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features import feeds_from_rows, inputs_of

__all__ = ["Requests", "loading"]

PATIENCE_SECONDS = 60
SLICE_SECONDS = 10
_ONLY_PROBABILITIES = oip.ModelInferRequest(
    outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="probabilities")]
).SerializeToString()
"""Added to a request: answers about one row are then of one size, whatever they say."""


@dataclass(frozen=True)
class Requests:
    """What came of the requests at one door.

    Attributes:
        sent: when each was sent, in seconds since 1970.
        seconds: how long each took, in the same order.
        failed: requests without an answer, with another status than 200, or with a gRPC error in place of a message.
    """

    sent: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    failed: int


@contextmanager
def loading(
    there: Endpoints, pipeline: Pipeline, row: dict[str, Any], callers: int, rate: float
) -> Iterator[dict[str, Requests]]:
    """Asks about one row at both doors at once, as long as the block runs and a few seconds more.

    Args:
        there: where.
        pipeline: of the model.
        row: what is asked about.
        callers: at each door; over gRPC they share connections, as callers in one process share a channel.
        rate: requests a second at each door; 0 for as many as are answered.

    Yields:
        What came of the requests by door; filled when the block has ended.
    """
    inputs = tuple(inputs_of(pipeline))
    expected = np.zeros((1, 2), np.float32)  # nobody compares here
    subject = Subject(Path(), inputs, [row], feeds_from_rows([row], inputs), expected)
    call = GRPC.body(subject, 1) + _ONLY_PROBABILITIES
    bodies = {"http": native().body(subject, 1), "grpc": _message(call)}
    answers = {"http": 0, "grpc": len(_message(_answer(there, call)))}
    stop = threading.Event()
    requests: dict[str, Requests] = {}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(len(DOORS)) as pool:
        commands = {}
        for door in DOORS:
            (Path(name) / door).write_bytes(bodies[door])
            commands[door] = _command(there, door, Path(name), callers, rate)
        runs = {
            door: pool.submit(_repeat, command, Path(name) / f"{door}.log", answers[door], stop)
            for door, command in commands.items()
        }
        try:
            yield requests
        finally:
            stop.set()
        for door, run in runs.items():
            requests[door] = run.result()


def _repeat(command: list[str], log: Path, answer: int, stop: threading.Event) -> Requests:
    """Runs h2load again and again: it says what failed only where it ends by itself."""
    parts = []
    while not stop.is_set():
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SLICE_SECONDS + PATIENCE_SECONDS,
        )
        parts.append(_read(log, done.stdout, answer))
        log.unlink()  # h2load would add to it
    return Requests(
        np.concatenate([part.sent for part in parts]),
        np.concatenate([part.seconds for part in parts]),
        sum(part.failed for part in parts),
    )


def _answer(there: Endpoints, call: bytes) -> bytes:
    with grpc.insecure_channel(
        there.inference_grpc, options=[("grpc.enable_http_proxy", 0)]
    ) as channel:
        ask: Any = channel.unary_unary(GRPC.path)
        answer: bytes = ask(call, timeout=PATIENCE_SECONDS)
        return answer


def _message(body: bytes) -> bytes:
    return struct.pack(">BI", 0, len(body)) + body


def _command(there: Endpoints, door: str, folder: Path, callers: int, rate: float) -> list[str]:
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
        f"--duration={SLICE_SECONDS}",
        f"--data={folder / door}",
        f"--log-file={folder / door}.log",
        *how,
        *pace,
        url,
    ]


def _read(log: Path, output: str, answer: int) -> Requests:
    """Takes the log and the summary.

    Args:
        log: of every request.
        output: the summary.
        answer: bytes of a right answer; 0 where its status says enough. The client does not read trailers: a call
            that ended in a gRPC error has a status of 200, and is known by the message that it lacks.

    Raises:
        RuntimeError: h2load failed.
    """
    found = re.search(
        r"requests: \d+ total, .* (\d+) done, .* (\d+) failed, (\d+) errored, (\d+) timeout"
        r".*\((\d+)\) data",
        output,
        re.DOTALL,
    )
    if not found:
        raise RuntimeError(f"h2load said what is not understood:\n{output}")
    rows = np.loadtxt(log, dtype=np.int64, ndmin=2)
    answered = rows[rows[:, 1] == 200]
    # h2load counts what it abandons when its time is up neither as done nor as failed.
    failed = max(int(found[2]), len(rows) - len(answered))
    if answer:
        failed += max(0, len(answered) - int(found[5]) // answer)
    return Requests(answered[:, 0] / 1e6, answered[:, 2] / 1e6, failed)
