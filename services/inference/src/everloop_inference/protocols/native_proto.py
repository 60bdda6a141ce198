"""The native API over gRPC: messages to rows, and answers to messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct, Value

from everloop_contracts.stubs.everloop.inference.v1 import inference_pb2 as native
from everloop_inference.domain import Answer, EngineKind, ServedModel
from everloop_inference.explain import Explanation
from everloop_inference.models.swap import Served
from everloop_runtime.errors import GRPC_CODES, EverloopError

__all__ = ["answered", "described", "explained", "refused", "rows"]

_ENGINES = {
    EngineKind.ONNX: native.ENGINE_ONNX,
    EngineKind.MLFLOW: native.ENGINE_MLFLOW,
}


def rows(structs: Iterable[Struct]) -> list[Mapping[str, Any]]:
    """Rows as a JSON parser gives them."""
    return [{name: _value(value) for name, value in row.fields.items()} for row in structs]


def _value(value: Value) -> object:
    kind = value.WhichOneof("kind")
    if kind == "null_value" or kind is None:
        return None
    return getattr(value, kind)


def answered(answer: Answer) -> native.PredictResponse:
    """The response to a request to predict."""
    response = native.PredictResponse(model=answer.model.name, version=answer.model.version)
    add = response.predictions.add
    for name, label, score, probabilities in zip(
        answer.prediction_ids,
        answer.labels or [""] * len(answer.scores),
        answer.scores,
        answer.probabilities.tolist(),
        strict=True,
    ):
        add(prediction_id=name, label=label, score=score, probabilities=probabilities)
    return response


def refused(name: str, error: EverloopError) -> native.PredictStreamResponse:
    """The response to a request of a stream that was refused or failed."""
    response = native.PredictStreamResponse(
        id=name,
        error=native.PredictStreamError(
            code=GRPC_CODES[error.kind].value[0],
            reason=error.reason,
            message=error.message,
            metadata=error.metadata,
        ),
    )
    if error.retry_after:
        response.error.retry_delay.FromNanoseconds(int(error.retry_after * 1e9))
    return response


def explained(model: ServedModel, explanations: Sequence[Explanation]) -> native.ExplainResponse:
    """The response to a request to explain."""
    response = native.ExplainResponse(model=model.name, version=model.version)
    for item in explanations:
        added = response.explanations.add(
            label=item.label, base_score=item.base_score, score=item.score
        )
        for spec, value, error in zip(model.inputs, item.attributions, item.errors, strict=True):
            added.attributions.add(field=spec.name, value=value, standard_error=error)
    return response


def described(served: Served) -> native.Model:
    """A model as it is served."""
    model = served.model
    message = native.Model(
        name=model.name,
        version=model.version,
        classes=model.classes,
        inputs=[
            native.Input(name=spec.name, type=spec.type, nullable=spec.nullable)
            for spec in model.inputs
        ],
        previous_version=model.previous_version,
        onnx_sha256=model.wanted.sha256,
        engine=_ENGINES[model.engine.kind],
    )
    message.serving_since.FromDatetime(model.since)
    if on := served.trial:
        message.on_trial.rollout = on.trial.rollout
        message.on_trial.version = on.candidate.version
        message.on_trial.strategy = on.trial.strategy
        message.on_trial.percent = on.trial.percent
    return message
