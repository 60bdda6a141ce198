"""Predictions over gRPC: the Open Inference Protocol and the native API, on one asyncio server."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import grpc
import numpy as np
import numpy.typing as npt
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct, Value
from grpc_status import rpc_status

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2_grpc as native_grpc
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.domain import Answer, Call
from everloop_inference.metrics import Door
from everloop_inference.oip_json import EXTENSIONS, PLATFORM, SERVER, VERSION
from everloop_inference.predict import Predictor
from everloop_inference.tensors import (
    DTYPES,
    Tensor,
    check_length,
    check_parameters,
    input_signature,
    invalid,
    output_signature,
    outputs,
    raw_values,
    rows_of,
    text,
    values_from_raw,
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
_NATIVE: Final = Door("grpc")
_OIP: Final = Door("grpc-oip")


Method = Callable[[Any, Any, Any], Awaitable[Any]]


def _answers(door: Door) -> Callable[[Method], Method]:
    """Turns a method that answers or raises into a handler: continues the trace, counts, and maps errors."""

    def wrap(method: Method) -> Method:
        @functools.wraps(method)
        async def handler(self: Any, request: Any, context: Context) -> Any:
            trace = next(
                (
                    str(value)
                    for key, value in context.invocation_metadata() or ()
                    if key == "traceparent"
                ),
                None,
            )
            try:
                if trace is None:
                    return await method(self, request, context)
                with span(method.__name__, {"traceparent": trace}):
                    return await method(self, request, context)
            except EverloopError as error:
                refused = error
            except Exception:
                log.exception("%s failed", method.__name__)
                refused = _INTERNAL
            door.refused(refused.reason)
            await context.abort_with_status(rpc_status.to_status(rich_status(refused)))
            raise AssertionError("abort_with_status raises")

        return handler

    return wrap


def _call(request: Message, context: Context) -> Call:
    """What the core must know about a request besides its content."""
    began = time.perf_counter()
    remaining = context.time_remaining()
    deadline = math.inf if remaining is None else began + remaining
    return Call(began, request.ByteSize(), deadline)


class OipServicer(oip_grpc.GRPCInferenceServiceServicer):
    """The Open Inference Protocol."""

    def __init__(self, predictor: Predictor, ready: Callable[[], bool]) -> None:
        """Takes what predicts and what ServerReady says."""
        self._predictor = predictor
        self._models = predictor.models
        self._ready = ready

    @_answers(_OIP)
    async def ServerLive(
        self, request: oip.ServerLiveRequest, context: Context
    ) -> oip.ServerLiveResponse:
        """Answers: that is all there is to it."""
        return oip.ServerLiveResponse(live=True)

    @_answers(_OIP)
    async def ServerReady(
        self, request: oip.ServerReadyRequest, context: Context
    ) -> oip.ServerReadyResponse:
        """False while the replica drains."""
        return oip.ServerReadyResponse(ready=self._ready())

    @_answers(_OIP)
    async def ModelReady(
        self, request: oip.ModelReadyRequest, context: Context
    ) -> oip.ModelReadyResponse:
        """Raises NOT_FOUND for a model that is not served."""
        self._models.get(request.name, request.version)
        return oip.ModelReadyResponse(ready=True)

    @_answers(_OIP)
    async def ServerMetadata(
        self, request: oip.ServerMetadataRequest, context: Context
    ) -> oip.ServerMetadataResponse:
        """Describes the server."""
        return oip.ServerMetadataResponse(name=SERVER, version=VERSION, extensions=EXTENSIONS)

    @_answers(_OIP)
    async def ModelMetadata(
        self, request: oip.ModelMetadataRequest, context: Context
    ) -> oip.ModelMetadataResponse:
        """Describes a model."""
        model = self._models.get(request.name, request.version)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=model.name,
            versions=[str(model.version)],
            platform=PLATFORM[model.engine.kind],
            inputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in input_signature(model)],
            outputs=[tensor(name=n, datatype=d, shape=s) for n, d, s in output_signature(model)],
        )

    @_answers(_OIP)
    async def ModelInfer(
        self, request: oip.ModelInferRequest, context: Context
    ) -> oip.ModelInferResponse:
        """Predicts; answers with raw contents where it was asked with them."""
        call = _call(request, context)
        tensors = _tensors(request)
        answer = await self._predictor.tensors(
            request.model_name, request.model_version, tensors, call
        )
        raw = bool(request.raw_input_contents)
        response = _response(answer, [item.name for item in request.outputs], raw)
        response.id = request.id
        _OIP.answered(answer.model.name, call.began)
        return response


def _tensors(request: oip.ModelInferRequest) -> list[Tensor]:
    for item in request.inputs:
        check_parameters(item.name, item.parameters)
    for wanted in request.outputs:
        check_parameters(wanted.name, wanted.parameters)
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
        tensors.append(Tensor(name, datatype, rows, values_from_raw(name, datatype, rows, raw)))
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
            response.raw_output_contents.append(raw_values(values))
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

    @_answers(_NATIVE)
    async def Predict(
        self, request: native.PredictRequest, context: Context
    ) -> native.PredictResponse:
        """Predicts rows."""
        call = _call(request, context)
        rows = [_row(row) for row in request.rows]
        answer = await self._predictor.rows(request.model, rows, call)
        labels = answer.labels or [""] * len(rows)
        response = native.PredictResponse(model=answer.model.name, version=answer.model.version)
        add = response.predictions.add
        for name, label, score, probabilities in zip(
            answer.prediction_ids, labels, answer.scores, answer.probabilities.tolist(), strict=True
        ):
            add(prediction_id=name, label=label, score=score, probabilities=probabilities)
        _NATIVE.answered(answer.model.name, call.began)
        return response

    @_answers(_NATIVE)
    async def GetModel(
        self, request: native.GetModelRequest, context: Context
    ) -> native.GetModelResponse:
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
