"""The ways to ask a server: what goes over the wire for some rows, and where the probabilities are in the answer."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bench.inference.subject import MODEL, Subject
from everloop_contracts.pipeline import FieldType
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native_pb2
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip

__all__ = [
    "GRPC",
    "STREAM",
    "STREAM_OIP",
    "Door",
    "http_oip",
    "http_rows",
    "http_tensors",
    "native",
]

_TYPES = {FieldType.STRING: "BYTES", FieldType.TIMESTAMP: "INT64"}


@dataclass(frozen=True)
class Door:
    """One way in.

    Attributes:
        protocol: what carries it.
        path: of the request.
        body: of a request about the first rows of the subject.
        read: takes the probabilities `[rows, 2]` out of an answer.
        messages: requests of one call; where it is more than one the call is a stream.
        sizes: names of the sizes of a request that are measured.
    """

    protocol: Literal["http", "grpc"]
    path: str
    body: Callable[[Subject, int], bytes]
    read: Callable[[bytes], Any]
    messages: int = 1
    sizes: tuple[str, ...] = ("single", "batch64")


def native() -> Door:
    """Rows as JSON objects, in Everloop's own API."""
    return Door("http", f"/v1/models/{MODEL}:predict", _rows, _native_probabilities)


def http_rows(path: str, wrapped: str = "predictions") -> Door:
    """Rows as JSON objects, for servers whose JSON is the handler's own; `wrapped` is empty for a bare list."""

    def read(content: bytes) -> Any:
        document = json.loads(content)
        return document[wrapped] if wrapped else document

    return Door("http", path, _rows, read)


def http_oip() -> Door:
    """The Open Inference Protocol over HTTP."""
    return Door("http", f"/v2/models/{MODEL}/infer", _oip, _oip_probabilities)


def http_tensors(path: str) -> Door:
    """Columns by name, as MLflow takes them."""
    return Door(
        "http", path, _tensors, lambda content: json.loads(content)["predictions"]["probabilities"]
    )


def _rows(subject: Subject, count: int) -> bytes:
    return json.dumps({"rows": subject.rows[:count]}).encode()


def _native_probabilities(content: bytes) -> Any:
    return [row["probabilities"] for row in json.loads(content)["predictions"]]


def _oip(subject: Subject, count: int) -> bytes:
    inputs = [
        {
            "name": spec.name,
            "datatype": _TYPES.get(spec.type, "FP32"),
            "shape": [count, 1],
            "data": subject.feeds[spec.name][:count].ravel().tolist(),
        }
        for spec in subject.inputs
    ]
    return json.dumps({"inputs": inputs}).encode()


def _oip_probabilities(content: bytes) -> Any:
    outputs = json.loads(content)["outputs"]
    return next(item["data"] for item in outputs if item["name"] == "probabilities")


def _tensors(subject: Subject, count: int) -> bytes:
    columns = {spec.name: subject.feeds[spec.name][:count].tolist() for spec in subject.inputs}
    return json.dumps({"inputs": columns}).encode()


def _grpc(subject: Subject, count: int) -> bytes:
    request = oip.ModelInferRequest(model_name=MODEL)
    for spec in subject.inputs:
        values = subject.feeds[spec.name][:count]
        datatype = _TYPES.get(spec.type, "FP32")
        request.inputs.add(name=spec.name, datatype=datatype, shape=[count, 1])
        if datatype == "BYTES":
            texts = [text.encode() for text in values.ravel()]
            raw = b"".join(struct.pack("<I", len(text)) + text for text in texts)
        else:
            raw = values.tobytes()
        request.raw_input_contents.append(raw)
    return request.SerializeToString()


def _grpc_probabilities(content: bytes) -> Any:
    response = oip.ModelInferResponse.FromString(content)
    names = [item.name for item in response.outputs]
    index = names.index("probabilities")
    if response.raw_output_contents:
        return np.frombuffer(response.raw_output_contents[index], dtype=np.float32)
    return list(response.outputs[index].contents.fp32_contents)


GRPC = Door("grpc", "/inference.GRPCInferenceService/ModelInfer", _grpc, _grpc_probabilities)
"""The Open Inference Protocol over gRPC, raw contents."""


def _stream(subject: Subject, count: int) -> bytes:
    request = native_pb2.PredictStreamRequest(id="1")
    request.request.model = MODEL
    for row in subject.rows[:count]:
        request.request.rows.add().update(row)
    return request.SerializeToString()


def _stream_probabilities(content: bytes) -> Any:
    response = native_pb2.PredictStreamResponse.FromString(content).response
    return [list(row.probabilities) for row in response.predictions]


STREAM_MESSAGES = 64

STREAM = Door(
    "grpc",
    "/everloop.inference.v1.InferenceService/PredictStream",
    _stream,
    _stream_probabilities,
    STREAM_MESSAGES,
    ("single",),
)
"""Requests of rows over one call, in Everloop's own API."""
STREAM_OIP = Door(
    "grpc",
    "/inference.GRPCInferenceService/ModelStreamInfer",
    _grpc,
    _grpc_probabilities,
    STREAM_MESSAGES,
    ("single",),
)
"""Requests of tensors over one call, as MLServer has it beside the Open Inference Protocol."""
