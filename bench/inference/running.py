"""Server processes: started with a mark that all their descendants inherit, measured and ended by it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import psutil

from bench.inference.doors import Door
from everloop.stack.processes import PART_MARK, STACK_MARK, kill_all, marked, memory_by_part

__all__ = [
    "Running",
    "ServerFailed",
    "ask",
    "free_port",
    "program",
    "stop_in_order",
    "wait_for_answer",
    "watch",
]

STOP_SECONDS = 40


class ServerFailed(Exception):
    """A server did not start or ended; says what its log ends with."""


class Clock:
    """Processor time of all processes with certain marks, from the moment it is made."""

    def __init__(self, home: Path, parts: Sequence[str]) -> None:
        self._home = home
        self._parts = parts
        self._began = self._read()

    def seconds(self) -> float:
        """Time used since; that of processes that have ended meanwhile is lost."""
        return sum(used - self._began.get(each, 0.0) for each, used in self._read().items())

    def _read(self) -> dict[psutil.Process, float]:
        # Not by parents: Ray does not wait for its workers, and the time of those that end is nowhere.
        used = {}
        for part in self._parts:
            for process in marked(self._home, part):
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used[process] = times.user + times.system
        return used


@dataclass(frozen=True)
class Running:
    """A server that runs.

    Attributes:
        http: `host:port`; likewise grpc.
        home: mark of its processes.
        parts: second marks of those that are the server; of the others (a broker beside it) only the time is told.
        beside: marks of the others.
        refused: returns how many requests the server itself says it refused or failed, so far.
        check: raises ServerFailed when it has ended.
        settle: returns when nothing of earlier requests is left to do; raises ServerFailed when something stays.
    """

    http: str
    grpc: str
    home: Path
    parts: tuple[str, ...]
    beside: tuple[str, ...] = ()
    refused: Callable[[], int] = lambda: 0
    check: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None

    def clock(self) -> Clock:
        """Starts to measure the processor time of the server's whole process tree."""
        return Clock(self.home, self.parts)

    def clock_beside(self) -> Clock:
        """Starts to measure that of what is beside it."""
        return Clock(self.home, self.beside)

    def memory(self) -> int:
        """Proportional set size of the whole tree, in bytes."""
        by_part = memory_by_part(self.home)
        return sum(by_part.get(part, 0) for part in self.parts)


@contextmanager
def program(
    name: str, command: Sequence[str], variables: Mapping[str, str], home: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command; ends it and everything that came of it.

    Args:
        name: mark of its processes, and name of its log.
        command: what to run.
        variables: added to the environment.
        home: first mark, and folder of the log.
    """
    marks = {
        STACK_MARK: str(home),
        PART_MARK: name,
        # Ray renames its workers, by default over their environment, where the marks are.
        "SPT_NOENV": "1",
    }
    with (home / f"{name}.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **marks, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home,
            # Ctrl-C is for the benchmark, which then ends its servers in order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        kill_all(marked(home, name))
        process.wait()


def watch(process: subprocess.Popen[bytes], name: str, home: Path) -> Callable[[], None]:
    """Returns a check that raises ServerFailed when a process has ended."""

    def check() -> None:
        if process.poll() is not None:
            lines = (home / f"{name}.log").read_text(errors="replace").splitlines()
            end = "\n".join(lines[-15:])
            raise ServerFailed(f"{name} ended with status {process.returncode}:\n{end}")

    return check


def stop_in_order() -> None:
    """Lets Ctrl-C and SIGTERM end this program by way of everything that it has to stop."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a shell starts what runs behind with SIGINT ignored
        signal.signal(number, interrupt)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(running: Running, door: Door, body: bytes) -> bytes:
    """Sends one request and returns the answer.

    Raises:
        ServerFailed: there is none.
    """
    try:
        if door.protocol == "grpc":
            with grpc.insecure_channel(running.grpc) as channel:
                if door.messages == 1:
                    method: Any = channel.unary_unary(door.path)
                    return bytes(method(body, timeout=10))
                method = channel.stream_stream(door.path)
                answers = list(method(iter([body] * door.messages), timeout=10))
            if len(answers) != door.messages:
                raise ServerFailed(f"{door.path} answers {len(answers)} of {door.messages}")
            return bytes(answers[0])
        connection = http.client.HTTPConnection(running.http, timeout=10)
        with contextlib.closing(connection):
            connection.request("POST", door.path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
    except (OSError, http.client.HTTPException, grpc.RpcError) as error:
        raise ServerFailed(f"{door.path}: {error!r}") from error
    if response.status != 200:
        raise ServerFailed(f"{door.path} answers {response.status}: {content[:500]!r}")
    return content


def wait_for_answer(running: Running, door: Door, body: bytes, seconds: float) -> None:
    """Returns when a request is answered.

    Raises:
        ServerFailed: the server ended, or has not answered in time.
    """
    deadline = time.monotonic() + seconds
    while True:
        running.check()
        try:
            ask(running, door, body)
            return
        except ServerFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
