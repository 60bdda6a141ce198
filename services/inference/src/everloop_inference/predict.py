"""A prediction: rows or tensors of any door in, answers out, one row into the log."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from everloop_contracts.pipeline import Task
from everloop_features.inputs import Feeds, InputError, feeds_from_rows
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.metrics import ROWS
from everloop_inference.swap import Models
from everloop_inference.tensors import Tensor, feeds_from_tensors
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Log", "Predictor", "refusal"]


class Log(Protocol):
    """Where answers are written down."""

    def offer(self, answer: Answer, feeds: Feeds, record_ids: Sequence[str], size: int) -> None:
        """Takes the rows of a request; never waits and never fails."""


class Predictor:
    """Predicts with whatever serves at the moment a request is looked at."""

    def __init__(self, models: Models, log: Log, epoch: str) -> None:
        """Takes the models that serve, the log, and what makes the prediction ids of this replica unique."""
        self.models = models
        self._epoch = epoch
        self._log = log
        self._lock = threading.Lock()
        self._next = 0

    def rows(self, name: str, rows: Sequence[Mapping[str, Any]], size: int) -> Answer:
        """Predicts JSON objects.

        Args:
            name: name of the model.
            rows: field name to value.
            size: bytes that the values took in the request.

        Raises:
            EverloopError: kind not_found: no such model; kind invalid: a row breaks the model's signature.
        """
        model = self.models.get(name)
        _check_count(model, len(rows))
        try:
            feeds = feeds_from_rows(rows, model.inputs)
        except InputError as error:
            raise refusal(model, error) from error
        return self._answer(model, feeds, len(rows), _record_ids(model, rows), size)

    def tensors(self, name: str, version: str, tensors: Sequence[Tensor], size: int) -> Answer:
        """Predicts columns.

        Args:
            name: name of the model.
            version: version that the caller insists on; empty for whichever serves.
            tensors: one per input, and one with record ids if the caller has them.
            size: bytes that the values took in the request.

        Raises:
            EverloopError: kind not_found: no such model or version; kind invalid: a tensor breaks its signature.
        """
        model = self.models.get(name, version)
        if tensors:
            _check_count(model, tensors[0].rows)
        try:
            feeds, count, record_ids = feeds_from_tensors(
                tensors, model.inputs, model.policy.id_field
            )
        except InputError as error:
            raise refusal(model, error) from error
        return self._answer(model, feeds, count, record_ids, size)

    def _answer(
        self, model: ServedModel, feeds: Feeds, count: int, record_ids: Sequence[str], size: int
    ) -> Answer:
        output = model.run(feeds)
        labels: list[str] = []
        classes = model.classes
        if model.task is Task.BINARY:
            scores = output[:, 1].tolist()
            threshold = model.threshold
            labels = [classes[1] if score >= threshold else classes[0] for score in scores]
        elif model.task is Task.MULTICLASS:
            labels = [classes[index] for index in output.argmax(axis=1).tolist()]
            scores = [0.0] * count
        else:
            scores = output[:, 0].tolist()
            output = output[:, :0]
        with self._lock:
            first = self._next
            self._next += count
        epoch = self._epoch
        ids = [f"{epoch}-{number:x}" for number in range(first, first + count)]
        answer = Answer(model, ids, labels, scores, output)
        ROWS.labels(model.name).inc(count)
        self._log.offer(answer, feeds, record_ids, size)
        return answer


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


def _check_count(model: ServedModel, count: int) -> None:
    if not count:
        raise EverloopError(Kind.INVALID, "NO_ROWS", "the request holds no rows", model=model.name)
    if count > model.policy.max_rows:
        raise EverloopError(
            Kind.INVALID,
            "TOO_MANY_ROWS",
            f"{count} rows in one request, {model.policy.max_rows} are allowed",
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
