"""The Open Inference Protocol over HTTP: JSON, and tensors in binary behind it.

The binary part is Triton's extension `binary_tensor_data`: the body is a JSON object, whose length a header tells,
followed by the values of those tensors that say how many bytes are theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from typing import Any, Final

import numpy as np

from everloop_features.inputs import Block
from everloop_inference.domain import Answer, ServedModel, Wanted
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
    raw_values,
    rows_of,
    values_from_raw,
)
from everloop_runtime.errors import EverloopError, Kind

__all__ = [
    "EXTENSIONS",
    "PLATFORM",
    "SERVER",
    "VERSION",
    "Request",
    "model_metadata",
    "quick",
    "repository",
    "request",
    "response",
    "server_metadata",
    "split",
    "tensors",
]

SERVER: Final = "everloop-inference"
VERSION: Final = version("everloop-inference")
PLATFORM: Final = {"onnx": "onnxruntime_onnx", "mlflow": "mlflow_pyfunc"}
"""What runs a model, by kind of engine."""
EXTENSIONS: Final = ("binary_tensor_data",)

_NUMBER: Final[frozenset[type]] = frozenset({int, float, type(None)})
_PLAIN: Final[dict[str, frozenset[type]]] = {
    "BYTES": frozenset({str, type(None)}),
    "BOOL": frozenset({bool, type(None)}),
    "INT64": frozenset({int, type(None)}),
    "FP32": _NUMBER,
    "FP64": _NUMBER,
}
"""Python's types of the data types whose values need no look at their range."""
_PYTHON: Final[dict[str, set[type]]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {float, int}}


@dataclass(frozen=True, slots=True)
class Request:
    """One request to infer.

    Attributes:
        id: what the response echoes; None where the caller gave none.
        inputs: name, data type, shape, data and parameters of each input, as they were given.
        raw: values of the inputs that are not in the JSON.
        outputs: names of the outputs it wants; all where empty.
        binary: whether it wants outputs in binary where it does not say so by name.
        binaries: outputs that it wants, or does not want, in binary.
    """

    id: str | None
    inputs: Sequence[tuple[Any, Any, Any, Any, Any]]
    raw: memoryview
    outputs: Sequence[str]
    binary: bool
    binaries: Mapping[str, bool]


def split(body: bytes, json_length: bytes | None) -> tuple[bytes, memoryview]:
    """The JSON of a body and what follows it; `json_length` is the header's value, None without a header.

    Raises:
        EverloopError: kind invalid: the length is none.
    """
    if json_length is None:
        return body, memoryview(b"")
    if not json_length.isdigit() or (length := int(json_length)) > len(body):
        message = "the length of the JSON is not a number up to the body's length"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message)
    return body[:length], memoryview(body)[length:]


def request(document: Mapping[str, Any], binary: memoryview) -> Request:
    """Reads a request.

    Raises:
        EverloopError: kind invalid: it is not of the protocol's shape.
    """
    try:
        given = document.get("id")
        parameters = document.get("parameters") or {}
        wants_binary = parameters.get("binary_data_output") is True
        wanted = []
        binaries = {}
        for item in document.get("outputs") or ():
            name, options = item["name"], item.get("parameters") or {}
            check_parameters(name, options)
            if type(name) is not str:
                raise TypeError(name)
            wanted.append(name)
            if "binary_data" in options:
                binaries[name] = options["binary_data"] is True
        parts = [
            (
                item["name"],
                item["datatype"],
                item["shape"],
                item.get("data"),
                item.get("parameters"),
            )
            for item in document["inputs"]
        ]
    except KeyError as error:
        message = f"not a request of the Open Inference Protocol: {error} is missing"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message) from error
    except (TypeError, AttributeError) as error:
        message = (
            "not a request of the Open Inference Protocol: 'inputs' and 'outputs' are lists of objects "
            "with names, 'parameters' is an object"
        )
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message) from error
    if given is not None and type(given) is not str:
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", "'id' must be a string", field="id")
    return Request(given, parts, binary, wanted, wants_binary, binaries)


def plain(asked: Request) -> dict[str, list[Any]] | None:
    """The inputs as columns of plain values; None where they are not, or need a closer look."""
    columns: dict[str, list[Any]] = {}
    floats: list[list[Any]] = []
    rows = 0
    for name, datatype, shape, data, options in asked.inputs:
        if options or type(name) is not str or type(data) is not list or not data:
            return None
        rows = rows or len(data)
        if len(data) != rows or shape not in ([rows], [rows, 1]):
            return None
        if type(data[0]) is list:
            if rows > 1 or len(data[0]) != 1:
                return None
            (data,) = data
        types = _PLAIN.get(datatype) if type(datatype) is str else None
        if types is None:
            return None
        if types is _NUMBER:
            floats.append(data)
        elif not types.issuperset(map(type, data)):
            return None
        columns[name] = data
    # One look at all of them: most inputs are such numbers.
    if not _NUMBER.issuperset(map(type, chain.from_iterable(floats))):
        return None
    return columns if len(columns) == len(asked.inputs) and not asked.raw else None


def quick(asked: Request, model: ServedModel) -> tuple[Block, Sequence[str]] | None:
    """The rows and their record ids (none if not given); None where they need a closer look.

    Raises:
        EverloopError: kind invalid: the model has no such output as the request names.
    """
    check_wanted(model, asked.outputs)
    columns = plain(asked)
    if columns is None:
        return None
    return block_from_plain(columns, model.layout, model.policy.id_field)


def tensors(asked: Request) -> list[Tensor]:
    """The inputs.

    Raises:
        EverloopError: kind invalid: one does not hold what it says.
    """
    found = []
    position = 0
    with np.errstate(over="ignore"):  # beyond FP32 is infinite
        for name, datatype, shape, data, options in asked.inputs:
            size = _binary_size(name, datatype, data, options)
            if size is None:
                found.append(_tensor(name, datatype, shape, data))
                continue
            raw = bytes(asked.raw[position : position + size])
            position += size
            rows = rows_of(name, _shape(name, shape))
            found.append(Tensor(name, datatype, rows, values_from_raw(name, datatype, rows, raw)))
    if position != len(asked.raw):
        message = f"{len(asked.raw)} bytes follow the JSON, its tensors name {position}"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message)
    return found


def _binary_size(name: object, datatype: object, data: object, options: object) -> int | None:
    """Bytes of a tensor behind the JSON; None where its values are in the JSON."""
    if not options:
        return None
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(options, dict):
        message = "each input has a 'name', a 'datatype' and an object as 'parameters'"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=str(name))
    check_parameters(name, options)
    size = options.get("binary_data_size")
    if size is None:
        return None
    if type(size) is not int or size < 0:
        message = f"tensor '{name}': 'binary_data_size' is not a number of bytes"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=name)
    if data is not None:
        message = f"tensor '{name}': binary and JSON data exclude each other"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=name)
    return size


def _shape(name: str, shape: object) -> list[int]:
    if not isinstance(shape, list) or set(map(type, shape)) != {int}:
        raise invalid("WRONG_SHAPE", "the shape is not a list of whole numbers", name)
    return shape


def _tensor(name: object, datatype: object, shape: object, data: object) -> Tensor:
    if data is None and isinstance(name, str):
        message = f"tensor '{name}': 'data' is missing"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=name)
    if not isinstance(name, str) or not isinstance(datatype, str) or not isinstance(data, list):
        message = "each input has a 'name', a 'datatype' and a list as 'data'"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=str(name))
    rows = rows_of(name, _shape(name, shape))
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
        raise invalid("WRONG_TYPE", f"data type {datatype!r} is not supported in JSON", name)
    numbers = [0 if value is None else value for value in data] if nulls else data
    accepted = _PYTHON[dtype.kind] | ({int} if nulls else set())
    if not set(map(type, numbers)) <= accepted:
        raise invalid("WRONG_TYPE", f"the data holds what is not {datatype}", name)
    try:
        return Tensor(name, datatype, rows, np.array(numbers, dtype=dtype), nulls)
    except OverflowError as error:
        raise invalid("OUT_OF_RANGE", f"a number does not fit {datatype}", name) from error


def response(answer: Answer, asked: Request) -> tuple[dict[str, Any], list[bytes]]:
    """The response to a request: its JSON, and what follows it."""
    document: dict[str, Any] = {
        "model_name": answer.model.name,
        "model_version": str(answer.model.version),
    }
    if asked.id is not None:
        document["id"] = asked.id
    binaries: list[bytes] = []
    described = document["outputs"] = []
    for name, datatype, shape, values in outputs(answer, asked.outputs):
        item: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
        if asked.binaries.get(name, asked.binary):
            raw = raw_values(values)
            item["parameters"] = {"binary_data_size": len(raw)}
            binaries.append(raw)
        else:
            item["data"] = values if isinstance(values, list) else values.ravel().tolist()
        described.append(item)
    return document, binaries


def server_metadata(fingerprint: str) -> dict[str, Any]:
    """What the server says about itself; the fingerprint tells deployments apart."""
    return {
        "name": SERVER,
        "version": VERSION,
        "extensions": EXTENSIONS,
        "fingerprint": fingerprint,
    }


def model_metadata(model: ServedModel, versions: Iterable[str]) -> dict[str, Any]:
    """What the protocol wants to know about a version; `versions` are all that answer."""
    return {
        "name": model.name,
        "versions": list(versions),
        "platform": PLATFORM[model.engine.kind],
        "inputs": _described(input_signature(model)),
        "outputs": _described(output_signature(model)),
    }


def repository(answering: Iterable[ServedModel], pooled: Iterable[Wanted]) -> list[dict[str, str]]:
    """The index of what answers, here and in pools, as Triton's extension of the protocol has it."""
    return [
        *(_indexed(model.wanted, "") for model in answering),
        *(_indexed(wanted, "in a pool of its own") for wanted in pooled),
    ]


def _indexed(wanted: Wanted, reason: str) -> dict[str, str]:
    version = str(wanted.version)
    return {"name": wanted.model, "version": version, "state": "READY", "reason": reason}


def _described(signature: Sequence[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "datatype": datatype, "shape": shape} for name, datatype, shape in signature
    ]
