"""Requests that a version on trial predicts once more, after somebody else has answered them.

What is mirrored waits until answers have left and comes after everybody who waits for one: it gathers for a moment,
runs as one batch, and rests as long as that batch took. In a crowd nothing is mirrored.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

from everloop_features.inputs import Block
from everloop_inference.batching import (
    Batcher,
    Capacity,
    Output,
    Ran,
    as_failure,
    is_slow,
    most_rows,
    ran,
)
from everloop_inference.convert import Request
from everloop_inference.domain import Answer
from everloop_inference.metrics import MIRRORS_DROPPED
from everloop_inference.models.trial import OnTrial

__all__ = ["Copy", "Mirror"]

PAUSE_SECONDS: Final = 0.002


@dataclass(slots=True, eq=False)
class Copy:
    """A request that has been answered, for the candidate.

    Attributes:
        trial: whose candidate.
        request: its content.
        given: its rows as the version that answered took them, where the candidate takes the same; None elsewhere.
        record_ids: one per row; empty where the caller gave none.
        size: bytes that its values took.
        rows: how many it has.
    """

    trial: OnTrial
    request: Request
    given: Block | None
    record_ids: Sequence[str]
    size: int
    rows: int


@dataclass(slots=True, eq=False)
class _Job:
    """A copy, converted."""

    copy: Copy
    block: Block


Finish = Callable[[OnTrial, Sequence[Copy], Block, Output, float], None]


class Mirror:
    """Queues copies, runs them when nobody is kept waiting, and hands over what came out; lives on one event loop."""

    def __init__(
        self, finish: Finish, batcher: Batcher, slow: Executor | None, capacity: Capacity
    ) -> None:
        """Takes what writes outputs down, who comes first, where slow runs go, and how much may wait."""
        self._finish = finish
        self._batcher = batcher
        self._slow = slow
        self._capacity = capacity
        self._copies: deque[Copy] = deque()
        self._rows = 0
        self._size = 0
        self._busy = False

    def offer(self, copy: Copy, answer: asyncio.Future[Answer]) -> None:
        """Takes a request when it has its answer; drops and counts it where there is no room for it."""
        if answer.cancelled() or answer.exception() is not None:
            return
        limit = self._capacity
        full = self._copies and (
            self._rows + copy.rows > limit.mirror_rows
            or self._size + copy.size > limit.mirror_bytes
        )
        if full or self._batcher.busy:
            MIRRORS_DROPPED.labels(copy.trial.candidate.name).inc()
            return
        self._copies.append(copy)
        self._rows += copy.rows
        self._size += copy.size
        if not self._busy:
            self._later(0.0)

    def _later(self, took: float) -> None:
        self._busy = True
        asyncio.get_running_loop().call_later(max(PAUSE_SECONDS, took), self._turn)

    def _turn(self) -> None:
        """Runs one batch, unless others would wait for it."""
        if self._batcher.busy:
            self._later(0.0)
            return
        began = time.perf_counter()
        trial, jobs = self._take()
        seconds = time.perf_counter() - began
        candidate = trial.candidate
        rows = sum(job.block.rows for job in jobs)
        if not jobs:
            self._next(seconds)
        elif is_slow(candidate, rows):
            self._run_slowly(trial, jobs, seconds)
        else:
            self._settle(trial, *_timed(trial, jobs), seconds)

    def _take(self) -> tuple[OnTrial, list[_Job]]:
        """Takes the next batch, of one trial, and converts it."""
        trial = self._copies[0].trial
        limit = most_rows(trial.candidate)
        jobs: list[_Job] = []
        rows = 0
        while self._copies and self._copies[0].trial is trial:
            copy = self._copies[0]
            if rows and rows + copy.rows > limit:
                break
            self._copies.popleft()
            self._rows -= copy.rows
            self._size -= copy.size
            rows += copy.rows
            try:
                block = copy.given
                if block is None:
                    block, _ = copy.request.read(trial.candidate)
                jobs.append(_Job(copy, block))
            except Exception as error:
                trial.failed(trial.candidate, error)
        return trial, jobs

    def _run_slowly(self, trial: OnTrial, jobs: list[_Job], seconds: float) -> None:
        def settle(running: asyncio.Future[tuple[list[Ran[_Job]], float]]) -> None:
            try:
                parts, took = running.result()
            except BaseException as error:  # a model's own code may raise what ends a thread
                for _ in jobs:
                    trial.failed(trial.candidate, as_failure(error))
                self._next(seconds)
            else:
                self._settle(trial, parts, took, seconds)

        try:
            running = asyncio.get_running_loop().run_in_executor(self._slow, _timed, trial, jobs)
        except RuntimeError:  # the threads have been told to end
            MIRRORS_DROPPED.labels(trial.candidate.name).inc(len(jobs))
            self._next(seconds)
            return
        running.add_done_callback(settle)

    def _settle(self, trial: OnTrial, parts: list[Ran[_Job]], took: float, seconds: float) -> None:
        """Hands over what ran for so long, after so many seconds of converting."""
        for part in parts:
            try:
                if isinstance(part.output, Exception):
                    raise part.output
                copies = [job.copy for job in part.jobs]
                self._finish(trial, copies, part.block, part.output, part.seconds)
            except Exception as error:
                for _ in part.jobs:
                    trial.failed(trial.candidate, error)
        trial.candidate.cost.learn(sum(part.block.rows for part in parts), took)
        self._next(took + seconds)

    def _next(self, took: float) -> None:
        self._busy = False
        if self._copies:
            self._later(took)


def _timed(trial: OnTrial, jobs: list[_Job]) -> tuple[list[Ran[_Job]], float]:
    """Runs jobs; returns what came out and the seconds that it took."""
    began = time.perf_counter()
    parts = ran(trial.candidate, jobs)
    return parts, time.perf_counter() - began
