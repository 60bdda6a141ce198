"""A prediction: rows or tensors of any door in, answers out, one row into the log."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, Protocol

import numpy as np

from everloop_contracts.pipeline import Task
from everloop_features.inputs import Block, InputError
from everloop_inference.batching import Batcher, Capacity, Job, Output
from everloop_inference.domain import Answer, Call, ServedModel
from everloop_inference.explain import Explainer, Explanation
from everloop_inference.metrics import count_batch
from everloop_inference.swap import Models
from everloop_inference.tensors import Tensor, block_from_tensors
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Log", "Predictor", "refusal"]


class Log(Protocol):
    """Where answers are written down."""

    def offer(
        self,
        answer: Answer,
        block: Block,
        record_ids: Sequence[str],
        latency_micros: Sequence[int],
        size: int,
    ) -> None:
        """Takes the rows of a batch; never waits and never fails."""


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
        model = self._assigned(name)
        _check_count(model, len(rows), model.policy.max_rows)
        block = _converted(model, rows)
        return self._queued(model, block, _record_ids(model, rows), call)

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
        model = self._assigned(name, version)
        found = quick(model)
        if found is not None and not _holds_infinity(found[0]):
            block, record_ids = found
            _check_count(model, block.rows, model.policy.max_rows)
            return self._queued(model, block, record_ids, call)
        given = tensors()
        if given:
            _check_count(model, given[0].rows, model.policy.max_rows)
        try:
            block, record_ids = block_from_tensors(given, model.layout, model.policy.id_field)
            _check_finite(model, block)
        except InputError as error:
            raise refusal(model, error) from error
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
        model = self._assigned(name)
        _check_count(model, len(rows), self.capacity.explain_rows)
        block = _converted(model, rows)
        return model, await self._explainer.explain(model, block, label, call)

    def _assigned(self, name: str, version: str = "") -> ServedModel:
        """The one place where a request is given the version that answers it."""
        return self.models.get(name, version)

    def _queued(
        self, model: ServedModel, block: Block, record_ids: Sequence[str], call: Call
    ) -> asyncio.Future[Answer]:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.batcher.submit(model, Job(block, record_ids, call, answer))
        return answer

    def _finish(
        self, model: ServedModel, jobs: Sequence[Job], block: Block, output: Output
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
        self._log.offer(whole, block, record_ids, latencies, size)

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


def refusal(model: ServedModel, error: InputError) -> EverloopError:
    """The error that a caller is told about a value that the model cannot take."""
    return EverloopError(
        Kind.INVALID,
        error.reason,
        str(error),
        model=model.name,
        field=error.field,
        row=str(error.row),
    )


def _converted(model: ServedModel, rows: Sequence[Mapping[str, Any]]) -> Block:
    try:
        if known := model.fields:
            for number, row in enumerate(rows):
                if not row.keys() <= known:
                    name = min(row.keys() - known)
                    text = "the pipeline has no such field"
                    raise InputError(number, name, "UNKNOWN_FIELD", text)
        block = model.layout.from_rows(rows)
        _check_finite(model, block)
    except InputError as error:
        raise refusal(model, error) from error
    return block


def _holds_infinity(block: Block) -> bool:
    return bool(np.count_nonzero(np.isinf(block.numbers)))


def _check_finite(model: ServedModel, block: Block) -> None:
    """Refuses what is infinite, or became so in the 32 bits that the model takes.

    Raises:
        InputError: the first such value, by field and then by row.
    """
    if not _holds_infinity(block):
        return
    for spec in model.inputs:
        column = model.layout.column(block, spec.name)
        if column.dtype == np.float32 and len(rows := np.flatnonzero(np.isinf(column))):
            text = "the number does not fit 32 bits"
            raise InputError(int(rows[0]), spec.name, "OUT_OF_RANGE", text)


def _check_count(model: ServedModel, count: int, most: int) -> None:
    if not count:
        raise EverloopError(Kind.INVALID, "NO_ROWS", "the request holds no rows", model=model.name)
    if count > most:
        raise EverloopError(
            Kind.INVALID,
            "TOO_MANY_ROWS",
            f"{count} rows in one request, {most} are allowed",
            model=model.name,
        )


def _record_ids(model: ServedModel, rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    field = model.policy.id_field
    ids = [row.get(field) or "" for row in rows]
    for row, value in enumerate(ids):
        if type(value) is not str:
            error = InputError(row, field, "WRONG_TYPE", f"must be a string, not {value!r:.80}")
            raise refusal(model, error)
    return ids
