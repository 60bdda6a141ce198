"""What requests hold, converted to what a version takes and checked against its signature."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from everloop_features.inputs import Block, InputError
from everloop_inference.domain import ServedModel
from everloop_inference.protocols.tensors import Tensor, block_from_tensors
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "Request",
    "RowsRequest",
    "TensorsRequest",
    "block_of",
    "check_count",
    "from_rows",
    "from_tensors",
]

Quick = Callable[[ServedModel], tuple[Block, Sequence[str]] | None]


class Request(Protocol):
    """The content of a request, which more than one version may be asked with."""

    def value(self, field: str) -> object:
        """The value of a field in the first row; None where it has none."""

    def read(self, model: ServedModel) -> tuple[Block, Sequence[str]]:
        """The rows as a version takes them, and their record ids (none if not given).

        Raises:
            EverloopError: kind invalid: the version cannot take them.
        """


class RowsRequest:
    """JSON objects."""

    __slots__ = ("_rows",)

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes field name to value of each row."""
        self._rows = rows

    def value(self, field: str) -> object:
        """See `Request`."""
        return self._rows[0].get(field) if self._rows else None

    def read(self, model: ServedModel) -> tuple[Block, Sequence[str]]:
        """See `Request`."""
        return from_rows(model, self._rows)


class TensorsRequest:
    """Columns."""

    __slots__ = ("_given", "_quick", "_tensors")

    def __init__(self, quick: Quick, tensors: Callable[[], Sequence[Tensor]]) -> None:
        """Takes the tensors as `from_tensors` does."""
        self._quick = quick
        self._tensors = tensors
        self._given: Sequence[Tensor] | None = None

    def value(self, field: str) -> object:
        """See `Request`.

        Raises:
            EverloopError: kind invalid: a tensor does not hold what it says.
        """
        for tensor in self._read_once():
            if tensor.name == field and tensor.rows and 0 not in tensor.nulls:
                value = tensor.values[0]
                return value.item() if isinstance(value, np.generic) else value
        return None

    def read(self, model: ServedModel) -> tuple[Block, Sequence[str]]:
        """See `Request`."""
        return from_tensors(model, self._quick, self._read_once)

    def _read_once(self) -> Sequence[Tensor]:
        if self._given is None:
            self._given = self._tensors()
        return self._given


def from_rows(model: ServedModel, rows: Sequence[Mapping[str, Any]]) -> tuple[Block, Sequence[str]]:
    """Converts the JSON objects of a request to predict.

    Returns:
        The rows, and their record ids.

    Raises:
        EverloopError: kind invalid: a row breaks the version's signature.
    """
    check_count(model, len(rows), model.policy.max_rows)
    return block_of(model, rows), _record_ids(model, rows)


def from_tensors(
    model: ServedModel,
    quick: Quick,
    tensors: Callable[[], Sequence[Tensor]],
) -> tuple[Block, Sequence[str]]:
    """Converts the columns of a request to predict.

    Args:
        model: the version.
        quick: reads the rows and their record ids where nothing about the tensors is unusual; an array for each of
            them may cost more than the prediction.
        tensors: reads the tensors: one per input, and one with record ids if the caller has them.

    Returns:
        The rows, and their record ids (none if not given).

    Raises:
        EverloopError: kind invalid: a value breaks the version's signature.
    """
    found = quick(model)
    if found is not None and not _holds_infinity(found[0]):
        check_count(model, found[0].rows, model.policy.max_rows)
        return found
    given = tensors()
    if given:
        check_count(model, given[0].rows, model.policy.max_rows)
    try:
        id_field = model.policy.id_field
        block, record_ids = block_from_tensors(given, model.layout, id_field, model.fields)
        _check_finite(model, block)
    except InputError as error:
        raise _refusal(model, error) from error
    return block, record_ids


def _refusal(model: ServedModel, error: InputError) -> EverloopError:
    """The error that a caller is told about a value that the model cannot take."""
    return EverloopError(
        Kind.INVALID,
        error.reason,
        str(error),
        model=model.name,
        field=error.field,
        row=str(error.row),
    )


def block_of(model: ServedModel, rows: Sequence[Mapping[str, Any]]) -> Block:
    """Converts JSON objects, however many there are.

    Raises:
        EverloopError: kind invalid: a row breaks the version's signature.
    """
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
        raise _refusal(model, error) from error
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


def check_count(model: ServedModel, count: int, most: int) -> None:
    """Refuses a request with no rows, or with too many.

    Raises:
        EverloopError: kind invalid: it is one.
    """
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
    ids = ["" if (value := row.get(field)) is None else value for row in rows]
    for row, value in enumerate(ids):
        if type(value) is not str:
            error = InputError(row, field, "WRONG_TYPE", f"must be a string, not {value!r:.80}")
            raise _refusal(model, error)
    return ids
