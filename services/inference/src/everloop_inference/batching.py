"""Batches across requests: what arrives in one turn of the event loop runs as one batch at the end of that turn.

Nobody waits for a batch to fill. A lone request runs at once; under load the requests that arrived while the last
batch ran are the next one, so that the size follows the load by itself. What runs of the model have cost bounds it: a
request waits for its neighbours no longer than the pipeline's latency target says, and not at all where more rows
would save nothing. One batch runs per turn and the models take turns, so that answers leave, and new requests are
read, between two batches.

What is expected to take longer than the target whoever shares it, and everything of an engine that is slow, runs in a
thread; its model's other requests wait, those of other models do not.

Everything here happens on one event loop; only a slow run itself leaves it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from everloop_features.inputs import Block
from everloop_inference.domain import Answer, Call, EngineKind, ServedModel
from everloop_inference.metrics import DROPPED
from everloop_inference.models.arms import Arm
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "Batcher",
    "Capacity",
    "Job",
    "Output",
    "Ran",
    "as_failure",
    "is_slow",
    "most_rows",
    "ran",
]

Output = npt.NDArray[np.float32]

CROWD = 256
"""Requests in one turn of the loop from which on some of them will wait for longer than that turn."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What may wait at once; beyond it a request is refused. One request fits into an empty queue whatever its size.

    Attributes:
        rows: rows of all models.
        requests: requests of all models.
        size: bytes of the requests of all models.
        model_rows: rows of one version of a model.
        model_requests: requests of one version of a model.
        model_size: bytes of the requests of one version of a model.
        stream: requests of one stream that are not answered yet; beyond it the stream is not read.
        explain_rows: rows of one request to explain.
        explain_requests: requests to explain.
        mirror_rows: rows that wait to be predicted once more by versions on trial that answer nobody.
        mirror_bytes: size of the requests that hold these rows.
    """

    rows: int = 65_536
    requests: int = 4096
    size: int = 256 * 1024 * 1024
    model_rows: int = 32_768
    model_requests: int = 2048
    model_size: int = 128 * 1024 * 1024
    stream: int = 64
    explain_rows: int = 32
    explain_requests: int = 16
    mirror_rows: int = 8192
    mirror_bytes: int = 64 * 1024 * 1024


@dataclass(slots=True, eq=False)
class Job:
    """The rows of one request, converted and checked, that wait for their answer.

    Attributes:
        block: the rows.
        record_ids: one per row; empty where the caller gave none.
        call: what else is known about the request.
        answer: what the caller awaits; cancelled when the caller is gone.
        failed: told the error if the run fails, instead of the caller; it answers the caller then.
        arm: where the request is counted while a version is on trial.
    """

    block: Block
    record_ids: Sequence[str]
    call: Call
    answer: asyncio.Future[Answer]
    failed: Callable[[Exception], None] | None = None
    arm: Arm | None = None


@dataclass(slots=True, eq=False)
class _Queue:
    """Jobs of one version that wait."""

    jobs: deque[Job] = field(default_factory=deque)
    rows: int = 0
    size: int = 0


Finish = Callable[[ServedModel, Sequence[Job], Block, Output, float], None]


class Batcher:
    """Queues jobs, runs them in batches, and hands over what came out."""

    def __init__(self, finish: Finish, capacity: Capacity, slow: Executor | None) -> None:
        """Takes what turns the output of a batch into answers, the limits, and where slow runs go."""
        self._finish = finish
        self._capacity = capacity
        self._slow = slow
        self._queues: dict[ServedModel, _Queue] = {}
        self._ready: deque[ServedModel] = deque()
        self._scheduled = False
        self._left = False
        self._behind = False
        self._rows = 0
        self._requests = 0
        self._size = 0

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        return self._requests

    @property
    def crowded(self) -> bool:
        """Whether a request that comes now may wait so long that its caller goes away."""
        return self._left or self._requests > CROWD

    @property
    def busy(self) -> bool:
        """Whether the last turn of the loop left some for the next; a batch that runs in a thread takes none."""
        return self._behind or self._requests > CROWD

    @property
    def half_full(self) -> bool:
        """Whether half of what one version may have waiting waits here."""
        limit = self._capacity
        return (
            self._requests * 2 > limit.model_requests
            or self._rows * 2 > limit.model_rows
            or self._size * 2 > limit.model_size
        )

    def submit(self, model: ServedModel, job: Job) -> None:
        """Queues a job; it runs at the end of this turn, or as soon after as there is room.

        Raises:
            EverloopError: kind exhausted, reason `OVERLOADED`: the queue is full; says when to come back.
        """
        rows = job.block.rows
        size = job.call.size
        if not self.has_room(model, rows, size):
            raise self._overloaded(model)
        queue = self._queues.get(model)
        if queue is None:
            queue = self._queues[model] = _Queue()
            self._wake(model)
        queue.jobs.append(job)
        queue.rows += rows
        queue.size += size
        self._rows += rows
        self._requests += 1
        self._size += size

    def has_room(self, model: ServedModel, rows: int, size: int) -> bool:
        """Whether a version can take a request of so many rows and bytes now."""
        limit = self._capacity
        if self._requests and (
            self._requests >= limit.requests
            or self._rows + rows > limit.rows
            or self._size + size > limit.size
        ):
            return False
        queue = self._queues.get(model)
        return (
            queue is None
            or not queue.jobs
            or (
                len(queue.jobs) < limit.model_requests
                and queue.rows + rows <= limit.model_rows
                and queue.size + size <= limit.model_size
            )
        )

    def _overloaded(self, model: ServedModel) -> EverloopError:
        DROPPED.labels(model.name, "overloaded").inc()
        return EverloopError(
            Kind.EXHAUSTED,
            "OVERLOADED",
            f"{self._requests} requests wait here already",
            model=model.name,
        ).after(max(0.01, model.cost.seconds(self._rows)))

    def _wake(self, model: ServedModel) -> None:
        """Lets a model take part in the turns."""
        self._ready.append(model)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Runs one batch of the model whose turn it is."""
        self._scheduled = False
        model = self._ready.popleft()
        queue = self._queues[model]
        try:
            jobs, rows = self._take(model, queue)
            if jobs and is_slow(model, rows):
                self._run_slowly(model, queue, jobs)
            else:
                if queue.jobs:
                    self._ready.append(model)
                else:
                    del self._queues[model]
                if jobs:
                    self._run(model, jobs)
        finally:  # whatever went wrong with one batch, those who wait get theirs
            self._left = bool(self._queues)
            self._behind = bool(self._ready)
            # After the answers of this batch: they leave before the next one runs.
            if self._ready:
                self._schedule()

    def _take(self, model: ServedModel, queue: _Queue) -> tuple[list[Job], int]:
        """Takes the next batch; drops what nobody waits for any more."""
        limit = most_rows(model)
        now = time.perf_counter()
        jobs: list[Job] = []
        rows = 0
        waiting = queue.jobs
        while waiting:
            job = waiting[0]
            more = job.block.rows
            if jobs and rows + more > limit:
                break
            waiting.popleft()
            queue.rows -= more
            queue.size -= job.call.size
            self._rows -= more
            self._requests -= 1
            self._size -= job.call.size
            if job.answer.done():
                DROPPED.labels(model.name, "gone").inc()
            elif job.call.deadline < now:
                DROPPED.labels(model.name, "deadline").inc()
                job.answer.set_exception(_late(model))
            else:
                jobs.append(job)
                rows += more
        return jobs, rows

    def _run(self, model: ServedModel, jobs: list[Job]) -> None:
        began = time.perf_counter()
        rows = sum(self._settle(model, part) for part in ran(model, jobs))
        model.cost.learn(rows, time.perf_counter() - began)

    def _run_slowly(self, model: ServedModel, queue: _Queue, jobs: list[Job]) -> None:
        def run() -> tuple[list[Ran[Job]], float]:
            began = time.perf_counter()
            return ran(model, jobs), time.perf_counter() - began

        def settle(running: asyncio.Future[tuple[list[Ran[Job]], float]]) -> None:
            try:
                parts, seconds = running.result()
                model.cost.learn(sum(self._settle(model, part) for part in parts), seconds)
            except BaseException as error:  # a model's own code may raise what ends a thread
                self._fail(jobs, as_failure(error))
            finally:
                self._go_on(model, queue)

        try:
            running = asyncio.get_running_loop().run_in_executor(self._slow, run)
        except RuntimeError as error:  # the threads have been told to end
            self._fail(jobs, error)
            self._go_on(model, queue)
            return
        running.add_done_callback(settle)

    def _go_on(self, model: ServedModel, queue: _Queue) -> None:
        """Lets a model take part again whose batch left the loop."""
        if queue.jobs:
            self._wake(model)
        else:
            del self._queues[model]
            self._left = bool(self._queues)

    def _settle(self, model: ServedModel, part: Ran[Job]) -> int:
        """Answers jobs that ran together; returns their rows."""
        try:
            if isinstance(part.output, Exception):
                raise part.output
            self._finish(model, part.jobs, part.block, part.output, part.seconds)
        except Exception as error:
            self._fail(part.jobs, error)
        return part.block.rows

    def _fail(self, jobs: Sequence[Job], error: Exception) -> None:
        """Tells those who still wait what went wrong."""
        for job in jobs:
            if job.answer.done():
                continue
            if job.failed is None:
                job.answer.set_exception(error)
            else:
                job.failed(error)


class _HasBlock(Protocol):
    """Rows that can run."""

    block: Block


_Runs = TypeVar("_Runs", bound=_HasBlock)


class Ran(NamedTuple, Generic[_Runs]):
    """Jobs that ran together, what came out, and the seconds that it took."""

    jobs: Sequence[_Runs]
    block: Block
    output: Output | Exception
    seconds: float


def ran(model: ServedModel, jobs: Sequence[_Runs]) -> list[Ran[_Runs]]:
    """Runs jobs as one batch; where that fails in halves, so that only who is to blame fails."""
    began = time.perf_counter()
    try:
        block = jobs[0].block if len(jobs) == 1 else Block.joined([job.block for job in jobs])
        output = model.run(model.layout.feeds(block))
        return [Ran(jobs, block, output, time.perf_counter() - began)]
    except Exception as error:
        if len(jobs) == 1:
            return [Ran(jobs, jobs[0].block, as_failure(error), time.perf_counter() - began)]
    middle = len(jobs) // 2
    return [*ran(model, jobs[:middle]), *ran(model, jobs[middle:])]


def as_failure(error: BaseException) -> Exception:
    """What a caller can be given for whatever a model raised; a future refuses `StopIteration`."""
    if isinstance(error, EverloopError):
        return error
    failure = RuntimeError(f"the model failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def most_rows(model: ServedModel) -> int:
    """Rows that a batch of a version shall have at most."""
    return min(model.policy.batch_rows, model.cost.rows_within(model.policy.batch_seconds))


def is_slow(model: ServedModel, rows: int) -> bool:
    """Whether a run belongs into a thread."""
    is_quick = model.engine.kind is EngineKind.ONNX
    return not is_quick or not model.cost.is_within(rows, model.policy.batch_seconds)


def _late(model: ServedModel) -> EverloopError:
    return EverloopError(
        Kind.DEADLINE,
        "DEADLINE_EXCEEDED",
        "the deadline passed before the request could run",
        model=model.name,
    )
