"""Flights as tensors of the Open Inference Protocol v2, over gRPC and as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from everloop.demo.flights import Flights
from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip

__all__ = ["Columns", "columns_of", "from_grpc", "from_json", "to_grpc", "to_json"]

_DATATYPES = {
    FieldType.STRING: "BYTES",
    FieldType.FLOAT: "FP32",
    FieldType.TIMESTAMP: "INT64",
}


@dataclass(frozen=True)
class Columns:
    """The model's raw inputs for many rows: name to datatype and values."""

    columns: dict[str, tuple[str, npt.NDArray[Any]]]

    def rows(self, start: int, stop: int) -> dict[str, tuple[str, npt.NDArray[Any]]]:
        """Returns the inputs of some rows."""
        return {name: (kind, values[start:stop]) for name, (kind, values) in self.columns.items()}

    def feeds(self, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        """Returns the same as the arrays `[rows, 1]` that the ONNX graph takes."""
        return {
            name: values[start:stop].reshape(-1, 1) for name, (_, values) in self.columns.items()
        }


def columns_of(flights: Flights, pipeline: Pipeline) -> Columns:
    """Turns flights into the inputs of the pipeline's model; null numbers are NaN."""
    columns: dict[str, tuple[str, npt.NDArray[Any]]] = {}
    for name, spec in pipeline.inputs.items():
        values: npt.NDArray[Any]
        if spec.type is FieldType.TIMESTAMP:
            values = flights.wall_clock
        elif spec.type is FieldType.STRING:
            values = flights.frame[name].fillna("").to_numpy(dtype=object)
        else:
            values = flights.frame[name].to_numpy(dtype=np.float32)
        columns[name] = (_DATATYPES[spec.type], values)
    return Columns(columns)


def to_grpc(model: str, rows: dict[str, tuple[str, npt.NDArray[Any]]]) -> oip.ModelInferRequest:
    """Writes a request with typed contents."""
    request = oip.ModelInferRequest(model_name=model)
    for name, (kind, values) in rows.items():
        tensor = request.inputs.add(name=name, datatype=kind, shape=[len(values), 1])
        if kind == "BYTES":
            tensor.contents.bytes_contents.extend(str(value).encode() for value in values)
        elif kind == "INT64":
            tensor.contents.int64_contents.extend(values.tolist())
        else:
            tensor.contents.fp32_contents.extend(values.tolist())
    return request


def from_grpc(answer: oip.ModelInferResponse) -> tuple[int, list[float]]:
    """Returns the version that answered and the probability of the positive class per row."""
    index, output = next(
        (i, output) for i, output in enumerate(answer.outputs) if output.name == "probabilities"
    )
    if answer.raw_output_contents:
        flat = np.frombuffer(answer.raw_output_contents[index], dtype="<f4")
    else:
        flat = np.array(output.contents.fp32_contents, dtype=np.float32)
    return int(answer.model_version), flat.reshape(tuple(output.shape))[:, -1].tolist()


def to_json(rows: dict[str, tuple[str, npt.NDArray[Any]]]) -> bytes:
    """Writes the body of `/v2/models/{m}/infer`; JSON has no NaN, a missing number is null."""
    inputs = [
        {
            "name": name,
            "datatype": kind,
            "shape": [len(values), 1],
            "data": [None if value != value else value for value in values.tolist()],
        }
        for name, (kind, values) in rows.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def from_json(body: dict[str, Any]) -> tuple[int, list[float]]:
    """As `from_grpc`, of a JSON answer."""
    output = next(item for item in body["outputs"] if item["name"] == "probabilities")
    flat = np.array(output["data"], dtype=np.float64).reshape(output["shape"])
    return int(body["model_version"]), flat[:, -1].tolist()
