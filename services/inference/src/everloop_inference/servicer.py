"""Predictions over gRPC: the Open Inference Protocol and the native API."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.struct_pb2 import Struct, Value
from grpc_status import rpc_status

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.domain import Answer
from everloop_inference.metrics import ERRORS, LATENCY, REQUESTS
from everloop_inference.oip_json import PLATFORM, SERVER, VERSION
from everloop_inference.predict import Predictor
from everloop_inference.rpc import Abort
from everloop_inference.tensors import (
    DTYPES,
    Tensor,
    bytes_from_raw,
    check_length,
    input_signature,
    invalid,
    numbers_from_raw,
    output_signature,
    outputs,
    raw_from_texts,
    rows_of,
    text,
)
from everloop_runtime.errors import EverloopError, Kind, rich_status
from everloop_runtime.telemetry import span

__all__ = ["NativeServicer", "OipServicer"]

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

_INTERNAL: Final = EverloopError(
    Kind.INTERNAL, "INTERNAL", "internal error; the server's log has the details"
)
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
_NATIVE, _OIP = "grpc", "grpc-oip"


def _answers(door: str) -> Callable[[Callable[[Any, Any], Any]], Callable[..., Any]]:
    """Turns a method that answers or raises into a handler: continues the trace, counts, and maps errors."""

    def wrap(method: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def handler(self: Any, request: Any, context: Context) -> Any:
            trace = _trace(context)
            try:
                if trace is None:
                    return method(self, request)
                with span(method.__name__, {"traceparent": trace}):
                    return method(self, request)
            except EverloopError as error:
                refused = error
            except Exception:
                log.exception("%s failed", method.__name__)
                refused = _INTERNAL
            ERRORS.labels(door, refused.reason).inc()
            status = rpc_status.to_status(rich_status(refused))
            raise Abort(status.code, status.details, status.trailing_metadata)

        return handler

    return wrap


def _trace(context: Context) -> str | None:
    for key, value in context.invocation_metadata() or ():
        if key == "traceparent":
            return str(value)
    return None


class OipServicer(oip_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol."""

    def __init__(self, predictor: Predictor, ready: Callable[[], bool]) -> None:
        """Takes what predicts and what ServerReady says."""
        self._predictor = predictor
        self._models = predictor.models
        self._ready = ready
        self._latency = LATENCY.labels(_OIP)

    @_answers(_OIP)
    def ServerLive(self, request: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        """Answers: that is all there is to it."""
        return oip.ServerLiveResponse(live=True)

    @_answers(_OIP)
    def ServerReady(self, request: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        """False while the replica drains."""
        return oip.ServerReadyResponse(ready=self._ready())

    @_answers(_OIP)
    def ModelReady(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        """Raises NOT_FOUND for a model that is not served."""
        self._models.get(request.name, request.version)
        return oip.ModelReadyResponse(ready=True)

    @_answers(_OIP)
    def ServerMetadata(self, request: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        """Describes the server."""
        return oip.ServerMetadataResponse(name=SERVER, version=VERSION)

    @_answers(_OIP)
    def ModelMetadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        """Describes a model."""
        model = self._models.get(request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=model.name,
            versions=[str(model.version)],
            platform=PLATFORM,
            inputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in input_signature(model)],
            outputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in output_signature(model)],
        )

    @_answers(_OIP)
    def ModelInfer(self, request: oip.ModelInferRequest) -> oip.ModelInferResponse:
        """Predicts; answers with raw contents where it was asked with them."""
        began = time.perf_counter()
        tensors = _tensors(request)
        answer = self._predictor.tensors(
            request.model_name, request.model_version, tensors, request.ByteSize()
        )
        raw = bool(request.raw_input_contents)
        response = _response(answer, [item.name for item in request.outputs], raw)
        response.id = request.id
        REQUESTS.labels(_OIP, answer.model.name).inc()
        self._latency.observe(time.perf_counter() - began)
        return response


def _tensors(request: oip.ModelInferRequest) -> list[Tensor]:
    raws = request.raw_input_contents
    if not raws:
        return [_typed(item) for item in request.inputs]
    if len(raws) != len(request.inputs):
        message = f"{len(raws)} raw contents for {len(request.inputs)} tensors"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message)
    tensors = []
    for item, raw in zip(request.inputs, raws, strict=True):
        name, datatype = item.name, item.datatype
        if item.HasField("contents"):
            message = f"tensor '{name}': raw and typed contents exclude each other"
            raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field=name)
        rows = rows_of(name, item.shape)
        values: npt.NDArray[Any] | list[str] = (
            bytes_from_raw(name, rows, raw)
            if datatype == "BYTES"
            else numbers_from_raw(name, datatype, rows, raw)
        )
        tensors.append(Tensor(name, datatype, rows, values))
    return tensors


def _typed(item: oip.ModelInferRequest.InferInputTensor) -> Tensor:
    name, datatype, contents = item.name, item.datatype, item.contents
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


def _response(answer: Answer, wanted: list[str], raw: bool) -> oip.ModelInferResponse:
    response = oip.ModelInferResponse(
        model_name=answer.model.name, model_version=str(answer.model.version)
    )
    for name, datatype, shape, values in outputs(answer, wanted):
        item = response.outputs.add(name=name, datatype=datatype, shape=shape)
        if raw:
            response.raw_output_contents.append(
                raw_from_texts(values) if isinstance(values, list) else values.tobytes()
            )
        elif isinstance(values, list):
            item.contents.bytes_contents.extend([value.encode() for value in values])
        else:
            item.contents.fp32_contents.extend(values.ravel().tolist())
    return response


class NativeServicer(native_grpc.InferenceServiceServicer):
    """The row-shaped API."""

    def __init__(self, predictor: Predictor) -> None:
        """Takes what predicts."""
        self._predictor = predictor
        self._latency = LATENCY.labels(_NATIVE)

    @_answers(_NATIVE)
    def Predict(self, request: native.PredictRequest) -> native.PredictResponse:
        """Predicts rows."""
        began = time.perf_counter()
        rows = [_row(row) for row in request.rows]
        answer = self._predictor.rows(request.model, rows, request.ByteSize())
        labels = answer.labels or [""] * len(rows)
        response = native.PredictResponse(model=answer.model.name, version=answer.model.version)
        add = response.predictions.add
        for name, label, score, probabilities in zip(
            answer.prediction_ids, labels, answer.scores, answer.probabilities.tolist(), strict=True
        ):
            add(prediction_id=name, label=label, score=score, probabilities=probabilities)
        REQUESTS.labels(_NATIVE, answer.model.name).inc()
        self._latency.observe(time.perf_counter() - began)
        return response

    @_answers(_NATIVE)
    def GetModel(self, request: native.GetModelRequest) -> native.GetModelResponse:
        """Describes a model."""
        model = self._predictor.models.get(request.model)
        described = native.Model(
            name=model.name,
            version=model.version,
            classes=model.classes,
            inputs=[
                native.Input(name=spec.name, type=spec.type, nullable=spec.nullable)
                for spec in model.inputs
            ],
            previous_version=model.previous_version,
            onnx_sha256=model.wanted.sha256,
        )
        described.serving_since.FromDatetime(model.since)
        return native.GetModelResponse(model=described)


def _row(row: Struct) -> Mapping[str, object]:
    return {name: _value(value) for name, value in row.fields.items()}


def _value(value: Value) -> object:
    kind = value.WhichOneof("kind")
    if kind == "null_value" or kind is None:
        return None
    return getattr(value, kind)
