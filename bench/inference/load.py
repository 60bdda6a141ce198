"""Load from compiled clients in a closed loop: wrk for HTTP, h2load for gRPC. The same request over and over."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["CONNECTIONS", "Load", "missing_tools", "over_grpc", "over_http", "uncorrected"]

CONNECTIONS = 8
"""gRPC callers beyond so many share connections, as callers in one process share a channel."""

PATIENCE_SECONDS = 30
_SCRIPT = Path(__file__).with_name("wrk.lua")
_PACKAGES = {"wrk": "wrk", "h2load": "nghttp2-client"}


@dataclass(frozen=True)
class Load:
    """What one run of a client saw.

    Attributes:
        requests: answers.
        seconds: time it took.
        p50: median time to the answer, in milliseconds; likewise p99.
        errors: answers that were none: refused, failed, cut off, late, or with a gRPC error in place of a message.
    """

    requests: int
    seconds: float
    p50: float
    p99: float
    errors: int


def missing_tools() -> list[str]:
    """Returns what to install, as sentences."""
    return [
        f"{tool} is missing: apt-get install {package} (Debian, Ubuntu), or `{package}` elsewhere"
        for tool, package in _PACKAGES.items()
        if not shutil.which(tool)
    ]


def over_http(address: str, paths: Sequence[str], body: bytes, callers: int, seconds: int) -> Load:
    """Posts JSON, to the paths in turn; every caller has a connection of its own."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        command = ["wrk", "--threads=1", f"--connections={callers}", f"--duration={seconds}s"]
        command += [f"--timeout={PATIENCE_SECONDS}s", f"--script={_SCRIPT}"]
        output = _run([*command, f"http://{address}", "--", file.name, *paths], seconds)
    lines = output[output.index("\nseen ") :].split("\n")[1:-1]
    requests, microseconds, errors = map(int, lines[0].split()[1:])
    corrected = [(int(value), int(count)) for value, count in map(str.split, lines[1:])]
    counts = uncorrected(corrected, microseconds // max(requests // callers, 1))
    times = np.repeat(*np.array(counts or [(0, 1)]).T) / 1e3
    p50, p99 = np.percentile(times, [50, 99])
    return Load(requests, microseconds / 1e6, float(p50), float(p99), errors)


def uncorrected(corrected: Sequence[tuple[int, int]], expected: int) -> list[tuple[int, int]]:
    """Takes out what wrk adds to latencies for coordinated omission.

    For a latency of more than twice the mean it adds all those that a client that never waits would have seen. In a
    closed loop nobody sends them: one stalled connection of many would set the p99, and h2load adds nothing.

    Args:
        corrected: latencies and their counts, ascending.
        expected: the mean that wrk assumes.
    """
    counts = dict(corrected)
    for value in sorted(counts, reverse=True):
        if counts[value] and value >= 2 * expected:
            for added in range(value - expected, expected, -expected):
                counts[added] -= counts[value]
    return [(value, count) for value, count in counts.items() if count > 0]


def over_grpc(
    address: str,
    path: str,
    body: bytes,
    answer: int,
    callers: int,
    seconds: int,
    messages: int = 1,
) -> Load:
    """Sends one message per call, or as many at once; the times are those of calls.

    Args:
        address: `host:port`.
        path: of the method.
        body: the message.
        answer: bytes of the right answer. The client does not read trailers: a call that ended in a gRPC error is
            known by the message that it lacks.
        callers: calls in flight.
        seconds: how long.
        messages: of one call; each is answered.
    """
    connections = min(callers, CONNECTIONS)
    with tempfile.TemporaryDirectory() as name:
        message, log = Path(name, "message"), Path(name, "log")
        message.write_bytes((struct.pack(">BI", 0, len(body)) + body) * messages)
        command = ["h2load", "--threads=1", f"--clients={connections}"]
        command += [f"--max-concurrent-streams={callers // connections}"]
        command += [f"--duration={seconds}", f"--data={message}", f"--log-file={log}"]
        command += ["--header=content-type: application/grpc", "--header=te: trailers"]
        output = _run([*command, f"http://{address}{path}"], seconds)
        # Nothing was answered in time where it is empty.
        rows = np.loadtxt(log, dtype=np.int64, ndmin=2) if log.stat().st_size else np.empty((0, 3))
    done, failed = _number(r"(\d+) done", output), _number(r"(\d+) failed", output)
    data = _number(r"\((\d+)\) data", output)
    times = rows[rows[:, 1] == 200, 2] / 1e3
    without_message = max(0, done - failed - data // ((answer + 5) * messages))
    p50, p99 = np.percentile(times, [50, 99]) if len(times) else (0.0, 0.0)
    return Load(done * messages, seconds, float(p50), float(p99), failed + without_message)


def _number(pattern: str, output: str) -> int:
    found = re.search(pattern, output)
    if not found:
        raise RuntimeError(f"h2load said what is not understood:\n{output}")
    return int(found[1])


def _run(command: list[str], seconds: int) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=seconds + 2 * PATIENCE_SECONDS,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return done.stdout
