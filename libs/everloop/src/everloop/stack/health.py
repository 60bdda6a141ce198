"""How the parts of a stack are."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from everloop.stack import endpoints, processes
from everloop.stack.errors import PartFailed, StackError
from everloop.stack.home import Home, default_home
from everloop.stack.part import NotReady, Part
from everloop.stack.parts import Catalog, build
from everloop.stack.supervisor import ProcessState, Supervisor

__all__ = ["PartStatus", "status", "wait_healthy"]

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class PartStatus:
    """One line of `status`.

    Attributes:
        part: Name of the part.
        state: `healthy`, `unhealthy`, `starting`, `failed`, `stopped`, or `external` for a Kafka that is not ours.
        pid: Its main process; None where there is none.
        endpoint: Where it is.
        uptime_seconds: Since its main process started; None where there is none.
        memory_bytes: Proportional set size of all its processes.
        detail: What is wrong, else empty.
    """

    part: str
    state: str
    pid: int | None
    endpoint: str
    uptime_seconds: float | None
    memory_bytes: int
    detail: str = ""


def status(home: Path | None = None, *, catalog: Catalog = build) -> list[PartStatus]:
    """Return the state of every part, each probed now; an empty list where no stack was ever started."""
    place = Home.at(home or default_home())
    try:
        there = endpoints.load(place)
    except StackError:
        return []
    parts = list(catalog(place, there))
    states = Supervisor(place).states()
    memory = processes.memory_by_part(place.root) if states else {}
    with ThreadPoolExecutor(len(parts)) as pool:
        problems = list(pool.map(lambda part: _problem(part, states.get(part.name)), parts))
    lines = [
        _status_line(part, states.get(part.name), problem, memory.get(part.name, 0))
        for part, problem in zip(parts, problems, strict=True)
    ]
    if not there.kafka_is_ours:
        lines.insert(0, PartStatus("kafka", "external", None, there.kafka_bootstrap, None, 0))
    return lines


def wait_healthy(
    home: Path,
    part: str,
    deadline_seconds: float,
    *,
    not_pid: int | None = None,
    catalog: Catalog = build,
) -> int:
    """Wait until a part is healthy and return its pid.

    Args:
        home: Home of the stack.
        part: Name of the part.
        deadline_seconds: How long to wait.
        not_pid: A pid that does not count: that of the process just killed.
        catalog: Describes the parts; for tests.

    Raises:
        PartFailed: It is not healthy in time.
    """
    place = Home.at(home)
    found = next(p for p in catalog(place, endpoints.load(place)) if p.name == part)
    deadline = time.monotonic() + deadline_seconds
    reason = ""
    while time.monotonic() < deadline:
        state = Supervisor(place).states().get(part)
        if state is None or not state.pid or state.pid == not_pid:
            reason = "does not run" if state is None else state.state
        else:
            try:
                found.probe()
                return state.pid
            except NotReady as not_ready:
                reason = str(not_ready)
        time.sleep(_POLL_SECONDS)
    raise PartFailed(part, f"not healthy after {deadline_seconds:.0f} s: {reason}", place.log(part))


def _problem(part: Part, state: ProcessState | None) -> str:
    if state is None or not state.pid:
        return ""
    try:
        part.probe()
    except NotReady as not_ready:
        return str(not_ready)
    return ""


def _status_line(part: Part, state: ProcessState | None, problem: str, memory: int) -> PartStatus:
    if state is None or not state.pid:
        failed = state is not None and state.state in ("FATAL", "BACKOFF")
        detail = state.reason if failed and state is not None else ""
        return PartStatus(
            part.name, "failed" if failed else "stopped", None, part.endpoint, None, 0, detail
        )
    healthy = "healthy" if not problem else "starting" if state.state == "STARTING" else "unhealthy"
    uptime = max(0.0, time.time() - state.started)
    return PartStatus(part.name, healthy, state.pid, part.endpoint, uptime, memory, problem)
