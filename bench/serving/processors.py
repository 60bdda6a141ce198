"""Which parts of the stack take how much of the processors while a benchmark runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.serving import replicas
from everloop.stack.processes import marked, part_of

__all__ = ["Span", "looking"]

LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Span:
    """Processor seconds of each part between two moments, in seconds since 1970; `replica` is none of `ray`."""

    began: float
    ended: float
    spent: dict[str, float]


@contextmanager
def looking(home: Path, address: str) -> Iterator[Sequence[Span]]:
    """Looks at the processes that are there now, while the block runs; yields spans, filled as time goes by.

    Args:
        home: of the stack.
        address: where its replicas listen.
    """
    names = {process: part_of(process) for process in marked(home)}
    names |= dict.fromkeys(replicas.processes(address), "replica")
    spans: list[Span] = []
    stop = threading.Event()

    def look() -> None:
        before, began = _spent(names), time.time()
        while not stop.wait(LOOK_SECONDS):
            after, ended = _spent(names), time.time()
            spent = {name: after[name] - before[name] for name in after}
            spans.append(Span(began, ended, spent))
            before, began = after, ended

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield spans
    finally:
        stop.set()
        thread.join()


def _spent(names: dict[psutil.Process, str]) -> dict[str, float]:
    spent: dict[str, float] = {}
    for process, name in names.items():
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            spent[name] = spent.get(name, 0.0) + times.user + times.system
    return spent
