"""The embedded stack around the data plane: broker, S3, MLflow, registry gateway, Ray with the replicas."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from bench.flights_model import PIPELINES
from everloop import stack
from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.supervisor import Supervisor

__all__ = ["away", "running"]

KILL_SECONDS = 30


@contextmanager
def running(home: Path, pipelines: Path = PIPELINES, **settings: object) -> Iterator[Endpoints]:
    """Runs inference and all that it needs; `settings` are those of the services, by their lower-case names."""
    before = dict(os.environ)
    os.environ.update({f"EVERLOOP_{name.upper()}": str(value) for name, value in settings.items()})
    try:
        there = _up(home, pipelines)
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        yield there
    finally:
        stack.down(home)


def _up(home: Path, pipelines: Path) -> Endpoints:
    """Starts it; on a busy machine a part may take longer than its deadline, but hardly twice."""
    only = ("s3", "inference")
    try:
        return stack.up(home, only=only, pipelines=pipelines)
    except stack.PartFailed as error:
        print(f"once more, since {error.part} did not start in its time", flush=True)
        return stack.up(home, only=only, pipelines=pipelines)


@contextmanager
def away(home: Path, *parts: str) -> Iterator[None]:
    """Kills parts with SIGKILL, keeps them from being started again, and starts them when the block ends."""
    supervisor = Supervisor(Home.at(home))

    def kill(part: str) -> None:
        _wait_until_gone(stack.kill(home, part))
        # supervisord may have begun to start it again.
        supervisor.stop(part)

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(kill, parts))
    try:
        yield
    finally:
        for part in parts:
            supervisor.start(part)


def _wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
