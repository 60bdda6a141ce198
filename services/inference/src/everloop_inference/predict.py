"""A prediction: rows or tensors of any door in, answers out, one row into the log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from operator import attrgetter
from typing import Any

from everloop_contracts.pipeline import Task
from everloop_features.inputs import Block
from everloop_inference.batching import Batcher, Capacity, Job, Output
from everloop_inference.convert import (
    Request,
    RowsRequest,
    TensorsRequest,
    block_of,
    check_count,
    from_rows,
    from_tensors,
)
from everloop_inference.domain import Answer, Call, ServedModel
from everloop_inference.explain import Explainer, Explanation
from everloop_inference.metrics import count_batch
from everloop_inference.models.swap import Models, Served
from everloop_inference.models.trial import OnTrial
from everloop_inference.ports import Log
from everloop_inference.protocols.tensors import Tensor
from everloop_inference.rollouts.mirror import Copy, Mirror

__all__ = ["Predictor"]


class Predictor:
    """Predicts with whatever serves at the moment a request is looked at; lives on one event loop.

    A row is converted and checked with its own request, before it shares a batch with others: what is wrong with it
    is told to its own caller and touches no other.
    """

    def __init__(
        self,
        models: Models,
        log: Log,
        epoch: str,
        capacity: Capacity | None = None,
        slow: Executor | None = None,
    ) -> None:
        """Takes the models that serve, the log, what makes this replica's prediction ids unique, and the batcher's."""
        self.models = models
        self.capacity = capacity or Capacity()
        self.batcher = Batcher(self._finish, self.capacity, slow)
        self._mirror = Mirror(self._mirrored, self.batcher, slow, self.capacity)
        self._explainer = Explainer(slow, self.capacity.explain_requests)
        self._epoch = epoch
        self._log = log
        self._numbers = itertools.count()

    def rows(
        self, name: str, rows: Sequence[Mapping[str, Any]], call: Call
    ) -> asyncio.Future[Answer]:
        """Predicts JSON objects; the answer is awaited, and cancelled by a caller that is gone.

        Args:
            name: name of the model.
            rows: field name to value.
            call: what else is known about the request.

        Raises:
            EverloopError: kind not_found: no such model; kind invalid: a row breaks the model's signature; kind
                exhausted: too much waits already. Awaiting the answer: kind deadline: it would come too late.
        """
        served = self.models.served(name)
        if served.trial is not None:
            return self._tried(served, served.trial, "", RowsRequest(rows), call)
        model = served.model
        block, record_ids = from_rows(model, rows)
        return self._queued(model, block, record_ids, call)

    def tensors(
        self,
        name: str,
        version: str,
        quick: Callable[[ServedModel], tuple[Block, Sequence[str]] | None],
        tensors: Callable[[], Sequence[Tensor]],
        call: Call,
    ) -> asyncio.Future[Answer]:
        """Predicts columns; as `rows` otherwise.

        Args:
            name: name of the model.
            version: version that the caller insists on; empty for whichever serves.
            quick: reads the rows and their record ids where nothing about the tensors is unusual; an array for each
                of them may cost more than the prediction.
            tensors: reads the tensors: one per input, and one with record ids if the caller has them.
            call: what else is known about the request.

        Raises:
            EverloopError: as `rows`; kind not_found also where another version serves.
        """
        served = self.models.served(name)
        if served.trial is not None:
            request = TensorsRequest(quick, tensors)
            return self._tried(served, served.trial, version, request, call)
        model = served.named(version)
        block, record_ids = from_tensors(model, quick, tensors)
        return self._queued(model, block, record_ids, call)

    async def explain(
        self, name: str, rows: Sequence[Mapping[str, Any]], label: str, call: Call
    ) -> tuple[ServedModel, list[Explanation]]:
        """Explains what a model says about JSON objects; logs nothing.

        Args:
            name: name of the model.
            rows: field name to value.
            label: class whose probability is explained; empty for the usual one.
            call: what else is known about the request.

        Raises:
            EverloopError: as `rows`; kind invalid also where there is no such class.
        """
        model = self.models.get(name)
        check_count(model, len(rows), self.capacity.explain_rows)
        block = block_of(model, rows)
        return model, await self._explainer.explain(model, block, label, call)

    def _queued(
        self, model: ServedModel, block: Block, record_ids: Sequence[str], call: Call
    ) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.batcher.submit(model, Job(block, record_ids, call, answer))
        return answer

    def _tried(
        self, served: Served, trial: OnTrial, version: str, request: Request, call: Call
    ) -> asyncio.Future[Answer]:
        """Queues a request while a version is on trial."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        model = self._assigned(served, trial, version, request)
        if model is trial.candidate and not version:
            self._by_candidate(trial, request, call, answer)
            return answer
        # Whoever insists on the candidate wants no other's answer.
        block, record_ids = self._by(model, trial, request, call, answer)
        if trial.shadow and trial.takes(request.value(trial.key)):
            shared = block if trial.same_inputs else None
            copy = Copy(trial, request, shared, record_ids, call.size, block.rows)
            answer.add_done_callback(partial(self._mirror.offer, copy))
        return answer

    def _assigned(
        self, served: Served, trial: OnTrial, version: str, request: Request
    ) -> ServedModel:
        """The one place where a request is given one of two versions."""
        if version or trial.shadow:
            return served.named(version)
        return trial.candidate if trial.takes(request.value(trial.key)) else served.model

    def _by(
        self,
        model: ServedModel,
        trial: OnTrial,
        request: Request,
        call: Call,
        answer: asyncio.Future[Answer],
    ) -> tuple[Block, Sequence[str]]:
        """Queues a request for one version and no other; returns what it holds."""

        def failed(error: Exception) -> None:
            trial.failed(model, error)
            answer.set_exception(error)

        block, record_ids = request.read(model)
        self.batcher.submit(model, Job(block, record_ids, call, answer, failed, trial.arm(model)))
        return block, record_ids

    def _by_candidate(
        self, trial: OnTrial, request: Request, call: Call, answer: asyncio.Future[Answer]
    ) -> None:
        """Queues a request for the candidate, and where it cannot answer for the version that serves."""
        candidate, baseline = trial.candidate, trial.baseline

        def failed(error: Exception) -> None:
            trial.failed(candidate, error)
            try:
                self._by(baseline, trial, request, call, answer)
            except Exception as refused:
                answer.set_exception(refused)

        try:
            block, record_ids = request.read(candidate)
        except Exception as error:
            # What the other refuses as well is its caller's mistake.
            self._by(baseline, trial, request, call, answer)
            trial.failed(candidate, error)
            return
        if self.batcher.has_room(candidate, block.rows, call.size):
            arm = trial.candidate_arm
            self.batcher.submit(candidate, Job(block, record_ids, call, answer, failed, arm))
        else:  # a crowd is no fault of the candidate; that it is slow shows in its latencies
            self._by(baseline, trial, request, call, answer)

    def _finish(
        self,
        model: ServedModel,
        jobs: Sequence[Job],
        block: Block,
        output: Output,
        seconds: float,
    ) -> None:
        """Gives each job of a batch its part of the output, and the log all of it."""
        whole = self._answer(model, output)
        count_batch(model.name, block.rows)
        now = time.perf_counter()
        record_ids: list[str] = []
        latencies: list[int] = []
        size = start = 0
        for job in jobs:
            rows = job.block.rows
            if not job.answer.done():
                part = whole if rows == block.rows else whole.part(start, start + rows)
                job.answer.set_result(part)
            start += rows
            record_ids.extend(job.record_ids or [""] * rows)
            latencies.extend([int((now - job.call.began) * 1e6)] * rows)
            size += job.call.size
        # Jobs are in the order in which they came: a trial began or ended between the two, or not at all.
        if jobs[0].arm is not None or jobs[-1].arm is not None:
            _count(jobs, seconds)
        self._log.offer(whole, block, record_ids, latencies, size)

    def _mirrored(
        self, trial: OnTrial, copies: Sequence[Copy], block: Block, output: Output, seconds: float
    ) -> None:
        """Writes down what a candidate says that answers nobody."""
        whole = self._answer(trial.candidate, output)
        record_ids: list[str] = []
        for copy in copies:
            record_ids.extend(copy.record_ids or [""] * copy.rows)
        trial.candidate_arm.predicted([seconds] * len(copies), block.rows)
        size = sum(copy.size for copy in copies)
        self._log.offer(whole, block, record_ids, [int(seconds * 1e6)] * block.rows, size)

    def _answer(self, model: ServedModel, output: Output) -> Answer:
        labels: list[str] = []
        classes = model.classes
        if model.task is Task.BINARY:
            scores = output[:, 1].tolist()
            threshold = model.threshold
            labels = [classes[1] if score >= threshold else classes[0] for score in scores]
        elif model.task is Task.MULTICLASS:
            labels = [classes[index] for index in output.argmax(axis=1).tolist()]
            scores = output.max(axis=1).tolist()
        else:
            scores = output[:, 0].tolist()
            output = output[:, :0]
        epoch = self._epoch
        ids = [f"{epoch}-{number:x}" for number in itertools.islice(self._numbers, len(scores))]
        return Answer(model, ids, labels, scores, output)


def _count(jobs: Sequence[Job], seconds: float) -> None:
    """Counts requests by the time of the run that they shared.

    Both versions queue on one event loop: the time since a request came would tell of the other one's runs as well.
    """
    for arm, group in itertools.groupby(jobs, key=attrgetter("arm")):
        if arm is not None:
            counted = list(group)
            arm.predicted([seconds] * len(counted), sum(job.block.rows for job in counted))
