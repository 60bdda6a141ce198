"""Tensors of the Open Inference Protocol: from the wire to what the model takes, and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import FieldType, Task
from everloop_features.inputs import (
    NULL_TIME,
    Block,
    InputError,
    InputSpec,
    Layout,
    feeds_from_rows,
)
from everloop_inference.domain import Answer, ServedModel
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "DTYPES",
    "Tensor",
    "block_from_plain",
    "block_from_tensors",
    "check_length",
    "check_parameters",
    "check_wanted",
    "input_signature",
    "invalid",
    "output_signature",
    "outputs",
    "plain_from_raw",
    "raw_values",
    "rows_of",
    "text",
    "texts_from_raw",
    "values_from_raw",
]

DTYPES: Final[dict[str, np.dtype[Any]]] = {
    name: np.dtype(code)
    for name, code in {
        "BOOL": "?",
        "INT8": "i1",
        "INT16": "<i2",
        "INT32": "<i4",
        "INT64": "<i8",
        "UINT8": "u1",
        "UINT16": "<u2",
        "UINT32": "<u4",
        "UINT64": "<u8",
        "FP16": "<f2",
        "FP32": "<f4",
        "FP64": "<f8",
    }.items()
}
"""Data types of numbers; BYTES is the one of texts."""

_LENGTH: Final = struct.Struct("<I")
_ASCII: Final = 128
_PREFIXES: Final = [_LENGTH.pack(length).decode("ascii") for length in range(_ASCII)]
"""Lengths of short texts as they are written before them, which is ASCII too."""
_SINGLE: Final = {
    name: struct.Struct(code)
    for name, code in {"INT32": "<i", "INT64": "<q", "FP32": "<f", "FP64": "<d"}.items()
}

_DATATYPES: Final = {
    FieldType.STRING: "BYTES",
    FieldType.BOOL: "BOOL",
    FieldType.INT: "INT64",
    FieldType.FLOAT: "FP32",
    FieldType.TIMESTAMP: "INT64",
}


@dataclass(slots=True)
class Tensor:
    """One input tensor, checked against its own shape.

    Attributes:
        name: name of the tensor.
        datatype: data type as the protocol names it.
        rows: first dimension.
        values: `[rows]` numbers, or texts.
        nulls: positions of values that the caller gave as null.
    """

    name: str
    datatype: str
    rows: int
    values: npt.NDArray[Any] | list[str]
    nulls: Sequence[int] = ()


def invalid(reason: str, message: str, name: str) -> EverloopError:
    """The error about a tensor."""
    return EverloopError(Kind.INVALID, reason, f"tensor '{name}': {message}", field=name)


def rows_of(name: str, shape: Sequence[int]) -> int:
    """First dimension of `[rows]` or `[rows, 1]`.

    Raises:
        EverloopError: kind invalid: another shape.
    """
    if not (len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)) or shape[0] < 0:
        raise invalid("WRONG_SHAPE", f"shape {list(shape)} is not [rows] or [rows, 1]", name)
    return shape[0]


def check_length(name: str, rows: int, found: int) -> None:
    """Compares the number of values with the shape.

    Raises:
        EverloopError: kind invalid: they differ.
    """
    if rows != found:
        raise invalid("WRONG_SHAPE", f"{found} values for {rows} rows", name)


def check_parameters(name: str, parameters: Collection[str]) -> None:
    """Refuses parameters of a tensor that would change its meaning; others are accepted and ignored.

    Raises:
        EverloopError: kind invalid: values in shared memory, or classes instead of values.
    """
    for parameter in ("shared_memory_region", "classification"):
        if parameter in parameters:
            raise invalid("UNSUPPORTED_PARAMETER", f"{parameter!r} is not supported", name)


def values_from_raw(
    name: str, datatype: str, rows: int, raw: bytes
) -> npt.NDArray[Any] | list[str]:
    """Reads what `raw_values` writes, numbers without copying them.

    Raises:
        EverloopError: kind invalid: the bytes are not so many values of that type.
    """
    if datatype == "BYTES":
        return texts_from_raw(name, rows, raw)
    dtype = np.dtype("<u2") if datatype == "BF16" else DTYPES.get(datatype)
    if dtype is None:
        raise invalid("WRONG_TYPE", f"data type {datatype!r} is not supported", name)
    if len(raw) != rows * dtype.itemsize:
        raise invalid("WRONG_SHAPE", f"{len(raw)} bytes for {rows} values of {datatype}", name)
    values = np.frombuffer(raw, dtype=dtype)
    if datatype == "BOOL" and (values.view("u1") > 1).any():
        raise invalid("WRONG_TYPE", "a BOOL is a byte of 0 or 1", name)
    # BF16 is the upper half of FP32.
    return (values.astype("<u4") << 16).view("<f4") if datatype == "BF16" else values


def plain_from_raw(datatype: str, raw: bytes) -> object:
    """Reads one value.

    Raises:
        ValueError: the bytes are not one value, or one of a type that is seldom sent for single rows.
    """
    reader = _SINGLE.get(datatype)
    if reader is not None and len(raw) == reader.size:
        return reader.unpack(raw)[0]
    if datatype == "BYTES" and len(raw) >= 4 and _LENGTH.unpack_from(raw)[0] == len(raw) - 4:
        return raw[4:].decode()
    if datatype == "BOOL" and raw in (b"\0", b"\1"):
        return raw == b"\1"
    raise ValueError(f"{len(raw)} bytes are no {datatype}")


def raw_values(values: npt.NDArray[Any] | Sequence[str]) -> bytes:
    """Writes numbers row-major and little-endian, texts each behind its length as four little-endian bytes."""
    if isinstance(values, np.ndarray):
        return values.tobytes()
    if len(values) > 1 and max(map(len, values)) < _ASCII and "".join(values).isascii():
        # Lengths are characters then, and all of it is encoded at once.
        return "".join([f"{_PREFIXES[len(item)]}{item}" for item in values]).encode()
    encoded = [item.encode() for item in values]
    return b"".join([part for item in encoded for part in (_LENGTH.pack(len(item)), item)])


def texts_from_raw(name: str, rows: int, raw: bytes) -> list[str]:
    """Reads texts, each behind its length as four little-endian bytes."""
    texts: list[str] = []
    # Where all is ASCII it is decoded at once: a place among the bytes is one among the characters.
    plain = raw.decode() if raw.isascii() else None
    position, end = 0, len(raw)
    while position < end:
        start = position + 4
        if start > end:
            raise invalid("WRONG_SHAPE", "a length is cut off", name)
        (length,) = _LENGTH.unpack_from(raw, position)
        position = start + length
        if position > end:
            raise invalid("WRONG_SHAPE", "a text is cut off", name)
        texts.append(
            plain[start:position] if plain is not None else text(name, raw[start:position])
        )
    check_length(name, rows, len(texts))
    return texts


def text(name: str, value: bytes) -> str:
    """Decodes UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise invalid("WRONG_TYPE", "a text is not UTF-8", name) from error


def block_from_plain(
    plain: dict[str, list[Any]], layout: Layout, id_field: str
) -> tuple[Block, Sequence[str]] | None:
    """Converts columns of plain values, and takes the record ids from them; None where they need a closer look."""
    ids = plain.pop(id_field, [])
    if not set(map(type, ids)) <= {str}:
        return None
    block = layout.from_plain(plain)
    return None if block is None else (block, ids)


def block_from_tensors(
    tensors: Sequence[Tensor], layout: Layout, id_field: str, fields: Collection[str] = ()
) -> tuple[Block, Sequence[str]]:
    """Converts tensors to what the model takes; nullable inputs may be left out, and other `fields` may be given.

    Returns:
        The rows, and their record ids (none if not given).

    Raises:
        InputError: an input is missing, or one of its values does not fit.
        EverloopError: kind invalid: tensors of different lengths, of an unknown name, or given twice.
    """
    given = {tensor.name: tensor for tensor in tensors}
    if len(given) != len(tensors):
        raise EverloopError(Kind.INVALID, "DUPLICATE_FIELD", "a tensor is given twice")
    if not tensors:
        raise EverloopError(Kind.INVALID, "NO_ROWS", "the request holds no tensors")
    count = tensors[0].rows
    for tensor in tensors:
        if tensor.rows != count:
            raise invalid("WRONG_SHAPE", f"{tensor.rows} rows, others have {count}", tensor.name)
    record_ids: Sequence[str] = ()
    if (ids := given.pop(id_field, None)) is not None:
        record_ids = _texts(ids, InputSpec(id_field, FieldType.STRING, True))
    block = layout.empty(count)
    # Once for all: beyond float32 is infinite, as from rows.
    with np.errstate(over="ignore"):
        for spec in layout.inputs:
            found = given.pop(spec.name, None)
            column = layout.column(block, spec.name)
            column[:] = _absent(spec) if found is None else _values(found, spec)
            if found is not None and found.nulls:
                column[list(found.nulls)] = _null(spec)
    for name in given:
        if name not in fields:
            raise invalid("UNKNOWN_FIELD", "the model has no such input", name)
    return block, record_ids


def _null(spec: InputSpec) -> str | float | int:
    if spec.type is FieldType.STRING:
        return ""
    return NULL_TIME if spec.type is FieldType.TIMESTAMP else math.nan


def _absent(spec: InputSpec) -> str | float | int:
    if not spec.nullable:
        raise InputError(0, spec.name, "MISSING_FIELD", "the tensor is missing")
    return _null(spec)


def _values(tensor: Tensor, spec: InputSpec) -> npt.NDArray[Any] | Sequence[str]:
    """The values to be cast; whatever stands where one is null."""
    if tensor.nulls and not spec.nullable:
        raise InputError(tensor.nulls[0], spec.name, "NOT_NULLABLE", "the field may not be null")
    if spec.type is FieldType.STRING:
        return _texts(tensor, spec)
    if spec.type is FieldType.TIMESTAMP:
        return _times(tensor, spec)
    return _numbers(tensor, spec)


def _texts(tensor: Tensor, spec: InputSpec) -> list[str]:
    if not isinstance(tensor.values, list):
        raise _wrong(spec, 0, f"must be BYTES, not {tensor.datatype}")
    return tensor.values


def _times(tensor: Tensor, spec: InputSpec) -> npt.NDArray[Any]:
    if isinstance(tensor.values, list):
        nulls = frozenset(tensor.nulls)
        rows = [
            {spec.name: None if row in nulls else value} for row, value in enumerate(tensor.values)
        ]
        return feeds_from_rows(rows, (spec,))[spec.name][:, 0]
    if tensor.values.dtype.kind not in "iu":
        raise _wrong(spec, 0, f"must be INT64 seconds or BYTES timestamps, not {tensor.datatype}")
    return tensor.values


def _numbers(tensor: Tensor, spec: InputSpec) -> npt.NDArray[Any]:
    values = tensor.values
    if isinstance(values, list):
        raise _wrong(spec, 0, f"must be numbers, not {tensor.datatype}")
    if spec.type is FieldType.BOOL:
        # Numbers are the only way to say null in raw contents.
        odd = np.flatnonzero((values != 0) & (values != 1) & (values == values))
        if len(odd):
            raise _wrong(spec, int(odd[0]), f"must be true or false, not {values[odd[0]]}")
    elif values.dtype.kind == "b":
        raise _wrong(spec, 0, "must be numbers, not BOOL")
    if values.dtype.kind == "f" and (spec.type is FieldType.INT or not spec.nullable):
        missing = np.isnan(values)
        if spec.type is FieldType.INT:
            odd = np.flatnonzero(~missing & (values != np.trunc(values)))
            if len(odd):
                raise _wrong(spec, int(odd[0]), f"must be a whole number, not {values[odd[0]]}")
        if not spec.nullable and missing.any():
            row = int(np.flatnonzero(missing)[0])
            raise InputError(row, spec.name, "NOT_NULLABLE", "the field may not be null")
    return values


def _wrong(spec: InputSpec, row: int, message: str) -> InputError:
    return InputError(row, spec.name, "WRONG_TYPE", message)


def input_signature(model: ServedModel) -> list[tuple[str, str, list[int]]]:
    """Name, data type and shape of each input."""
    return [(spec.name, _DATATYPES[spec.type], [-1, 1]) for spec in model.inputs]


def output_signature(model: ServedModel) -> list[tuple[str, str, list[int]]]:
    """Name, data type and shape of each output."""
    if model.task is Task.REGRESSION:
        return [("score", "FP32", [-1]), ("prediction_id", "BYTES", [-1])]
    return [
        ("probabilities", "FP32", [-1, len(model.classes)]),
        ("label", "BYTES", [-1]),
        ("prediction_id", "BYTES", [-1]),
    ]


def check_wanted(model: ServedModel, wanted: Sequence[str]) -> None:
    """Refuses names of outputs that a model does not have, before it runs.

    Raises:
        EverloopError: kind invalid: there is one.
    """
    if wanted:
        known = {name for name, _, _ in output_signature(model)}
        for name in wanted:
            if name not in known:
                raise invalid("UNKNOWN_OUTPUT", "the model has no such output", name)


def outputs(
    answer: Answer, wanted: Sequence[str]
) -> list[tuple[str, str, list[int], npt.NDArray[np.float32] | list[str]]]:
    """Name, data type, shape and values of the outputs that a caller wants; of all where it names none."""
    values: dict[str, npt.NDArray[np.float32] | list[str]] = {
        "label": answer.labels,
        "prediction_id": answer.prediction_ids,
    }
    if answer.model.classes:
        values["probabilities"] = answer.probabilities
    else:
        values["score"] = np.asarray(answer.scores, dtype=np.float32)
    count = len(answer.prediction_ids)
    signature = output_signature(answer.model)
    if wanted:
        known = {name: (name, datatype, shape) for name, datatype, shape in signature}
        signature = [known[name] for name in wanted]
    return [
        (name, datatype, [count, *shape[1:]], values[name]) for name, datatype, shape in signature
    ]
