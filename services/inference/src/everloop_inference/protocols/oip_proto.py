"""The Open Inference Protocol over gRPC: messages to tensors, and answers to messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_features.inputs import Block
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.protocols.oip_json import PLATFORM
from everloop_inference.protocols.raw_block import raw_block
from everloop_inference.protocols.tensors import (
    DTYPES,
    Tensor,
    block_from_plain,
    check_length,
    check_parameters,
    check_wanted,
    input_signature,
    invalid,
    output_signature,
    outputs,
    plain_from_raw,
    raw_values,
    rows_of,
    text,
    values_from_raw,
)
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["check_outputs", "described", "quick", "response", "tensors"]

_CONTENTS: Final = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}
_SINGLE: Final = {"BYTES": "bytes_contents"} | {
    name: _CONTENTS[name] for name in ("BOOL", "INT32", "INT64", "FP32", "FP64")
}
"""Types whose single value needs no look at its range."""


def check_outputs(request: oip.ModelInferRequest) -> None:
    """Refuses parameters of outputs that would change their meaning.

    Raises:
        EverloopError: kind invalid: there is one.
    """
    for wanted in request.outputs:
        if wanted.parameters:
            check_parameters(wanted.name, wanted.parameters)


def plain(request: oip.ModelInferRequest) -> dict[str, list[Any]] | None:
    """The inputs of one row as columns of plain values; None where they are more than that, or need a closer look."""
    row: dict[str, list[Any]] = {}
    inputs, raws = request.inputs, request.raw_input_contents
    if raws and len(raws) != len(inputs):
        return None
    try:
        for index, item in enumerate(inputs):
            name, datatype, shape = item.name, item.datatype, item.shape
            if shape[0] != 1 or shape[-1] != 1 or len(shape) > 2 or item.parameters:
                return None
            if raws:
                if item.HasField("contents"):
                    return None
                row[name] = [plain_from_raw(datatype, raws[index])]
            else:
                (value,) = getattr(item.contents, _SINGLE[datatype])
                row[name] = [value.decode() if datatype == "BYTES" else value]
    except (ValueError, IndexError, KeyError):
        return None
    return row if len(row) == len(inputs) else None


def quick(request: oip.ModelInferRequest, model: ServedModel) -> tuple[Block, Sequence[str]] | None:
    """The rows and their record ids (none if not given); None where they need a closer look.

    Raises:
        EverloopError: kind invalid: the model has no such output as the request names.
    """
    check_wanted(model, [item.name for item in request.outputs])
    if request.raw_input_contents and (
        found := raw_block(request, model.layout, model.policy.id_field)
    ):
        return found
    columns = plain(request)
    if columns is None:
        return None
    return block_from_plain(columns, model.layout, model.policy.id_field)


def tensors(request: oip.ModelInferRequest) -> list[Tensor]:
    """The inputs of a request.

    Raises:
        EverloopError: kind invalid: a tensor does not hold what it says, or raw and typed contents are mixed.
    """
    raws = request.raw_input_contents
    if not raws:
        return [_typed(item) for item in request.inputs]
    if len(raws) != len(request.inputs):
        message = f"{len(raws)} raw contents for {len(request.inputs)} tensors"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message)
    found = []
    for item, raw in zip(request.inputs, raws, strict=True):
        name, datatype = item.name, item.datatype
        # Some clients send the message with nothing in it.
        if item.HasField("contents") and item.contents.ByteSize():
            message = f"tensor '{name}': raw and typed contents exclude each other"
            raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=name)
        if item.parameters:
            check_parameters(name, item.parameters)
        rows = rows_of(name, item.shape)
        found.append(Tensor(name, datatype, rows, values_from_raw(name, datatype, rows, raw)))
    return found


def _typed(item: oip.ModelInferRequest.InferInputTensor) -> Tensor:
    name, datatype, contents = item.name, item.datatype, item.contents
    if item.parameters:
        check_parameters(name, item.parameters)
    rows = rows_of(name, item.shape)
    values: npt.NDArray[Any] | list[str]
    if datatype == "BYTES":
        values = [text(name, value) for value in contents.bytes_contents]
    elif field := _CONTENTS.get(datatype):
        try:
            values = np.array(getattr(contents, field), dtype=DTYPES[datatype])
        except OverflowError as error:
            raise invalid("OUT_OF_RANGE", f"a number does not fit {datatype}", name) from error
    else:
        message = f"data type {datatype!r} is not supported in typed contents"
        raise invalid("WRONG_TYPE", message, name)
    check_length(name, rows, len(values))
    return Tensor(name, datatype, rows, values)


def response(answer: Answer, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
    """The response to a request: raw where it was asked with raw contents."""
    raw = bool(request.raw_input_contents)
    wanted = [item.name for item in request.outputs]
    response = oip.ModelInferResponse(
        model_name=answer.model.name, model_version=str(answer.model.version), id=request.id
    )
    for name, datatype, shape, values in outputs(answer, wanted):
        item = response.outputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            response.raw_output_contents.append(raw_values(values))
        elif isinstance(values, list):
            item.contents.bytes_contents.extend([value.encode() for value in values])
        else:
            item.contents.fp32_contents.extend(values.ravel().tolist())
    return response


def described(model: ServedModel, versions: Iterable[str]) -> oip.ModelMetadataResponse:
    """What the protocol wants to know about a version; `versions` are all that answer."""
    tensor = oip.ModelMetadataResponse.TensorMetadata
    return oip.ModelMetadataResponse(
        name=model.name,
        versions=versions,
        platform=PLATFORM[model.engine.kind],
        inputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in input_signature(model)],
        outputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in output_signature(model)],
    )
