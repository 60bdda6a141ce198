"""The Open Inference Protocol's JSON: requests in, responses out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any, Final

import numpy as np

from everloop_inference.domain import Answer, ServedModel
from everloop_inference.tensors import (
    DTYPES,
    Tensor,
    check_length,
    input_signature,
    invalid,
    output_signature,
    outputs,
    rows_of,
)
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "PLATFORM",
    "SERVER",
    "VERSION",
    "Request",
    "model_metadata",
    "request",
    "response",
    "server_metadata",
]

SERVER: Final = "everloop-inference"
VERSION: Final = version("everloop-inference")
PLATFORM: Final = "onnxruntime_onnx"

_PYTHON: Final[dict[str, set[type]]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {float, int}}


@dataclass(frozen=True, slots=True)
class Request:
    """One request to infer.

    Attributes:
        id: what the response echoes; None where the caller gave none.
        tensors: its inputs.
        outputs: names of the outputs it wants; all where empty.
    """

    id: str | None
    tensors: Sequence[Tensor]
    outputs: Sequence[str]


def request(document: Mapping[str, Any]) -> Request:
    """Reads a request.

    Raises:
        EverloopError: kind invalid: it is not of the protocol's shape, or a tensor does not hold what it says.
    """
    try:
        given = document.get("id")
        wanted = [item["name"] for item in document.get("outputs") or ()]
        parts = [
            (item["name"], item["datatype"], item["shape"], item["data"])
            for item in document["inputs"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        message = f"not a request of the Open Inference Protocol: {error!r}"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message) from error
    if given is not None and type(given) is not str:
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", "'id' must be a string", field="id")
    with np.errstate(over="ignore"):  # beyond FP32 is infinite
        return Request(given, [_tensor(*part) for part in parts], wanted)


def _tensor(name: object, datatype: object, shape: object, data: object) -> Tensor:
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(data, list):
        message = "each input has a 'name', a 'datatype' and a list as 'data'"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=str(name))
    if not isinstance(shape, list) or set(map(type, shape)) != {int}:
        raise invalid("WRONG_SHAPE", "the shape is not a list of whole numbers", name)
    rows = rows_of(name, shape)
    if data and isinstance(data[0], list):  # [rows, 1] may be written nested
        if not all(isinstance(item, list) for item in data):
            raise invalid("WRONG_SHAPE", "the data is nested in part", name)
        data = list(chain.from_iterable(data))
    check_length(name, rows, len(data))
    nulls = [row for row, value in enumerate(data) if value is None]
    if datatype == "BYTES":
        texts = ["" if value is None else value for value in data] if nulls else data
        if not all(type(value) is str for value in texts):
            raise invalid("WRONG_TYPE", "BYTES must be strings", name)
        return Tensor(name, datatype, rows, texts, nulls)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise invalid("WRONG_TYPE", f"data type {datatype!r} is not supported", name)
    numbers = [0 if value is None else value for value in data] if nulls else data
    accepted = _PYTHON[dtype.kind] | ({int} if nulls else set())
    if not set(map(type, numbers)) <= accepted:
        raise invalid("WRONG_TYPE", f"the data holds what is not {datatype}", name)
    try:
        return Tensor(name, datatype, rows, np.array(numbers, dtype=dtype), nulls)
    except OverflowError as error:
        raise invalid("OUT_OF_RANGE", f"a number does not fit {datatype}", name) from error


def response(answer: Answer, asked: Request) -> dict[str, Any]:
    """The response to a request."""
    document: dict[str, Any] = {
        "model_name": answer.model.name,
        "model_version": str(answer.model.version),
    }
    if asked.id is not None:
        document["id"] = asked.id
    document["outputs"] = [
        {
            "name": name,
            "datatype": datatype,
            "shape": shape,
            "data": values if isinstance(values, list) else values.ravel().tolist(),
        }
        for name, datatype, shape, values in outputs(answer, asked.outputs)
    ]
    return document


def server_metadata(fingerprint: str) -> dict[str, Any]:
    """What the server says about itself; the fingerprint tells deployments apart."""
    return {"name": SERVER, "version": VERSION, "extensions": [], "fingerprint": fingerprint}


def model_metadata(model: ServedModel) -> dict[str, Any]:
    """What the protocol wants to know about a model."""
    return {
        "name": model.name,
        "versions": [str(model.version)],
        "platform": PLATFORM,
        "inputs": _described(input_signature(model)),
        "outputs": _described(output_signature(model)),
    }


def _described(signature: Sequence[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in signature
    ]
