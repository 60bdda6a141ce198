"""The native API's JSON: requests in, responses out; the shapes are those of its protos."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from everloop_inference.domain import Answer, ServedModel, Wanted
from everloop_inference.explain import Explanation
from everloop_inference.models.swap import Served
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["answered", "described", "explained", "label_of", "pooled", "rows_of"]


def rows_of(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a request.

    Raises:
        EverloopError: kind invalid: there is no list of objects.
    """
    rows = document.get("rows")
    if type(rows) is not list or not all(type(row) is dict for row in rows):
        message = "the body is not JSON of the expected shape: 'rows' must be a list of objects"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field="rows")
    return rows


def answered(answer: Answer) -> dict[str, Any]:
    """A PredictResponse."""
    labels: Iterable[str] = answer.labels or [""] * len(answer.scores)
    rows = zip(
        answer.prediction_ids, labels, answer.scores, answer.probabilities.tolist(), strict=True
    )
    return {
        "model": answer.model.name,
        "version": answer.model.version,
        "predictions": [
            {"prediction_id": name, "label": label, "score": score, "probabilities": probabilities}
            for name, label, score, probabilities in rows
        ],
    }


def explained(model: ServedModel, explanations: Sequence[Explanation]) -> dict[str, Any]:
    """An ExplainResponse."""
    fields = [spec.name for spec in model.inputs]
    return {
        "model": model.name,
        "version": model.version,
        "explanations": [
            {
                "label": item.label,
                "base_score": item.base_score,
                "score": item.score,
                "attributions": [
                    {"field": field, "value": value, "standard_error": error}
                    for field, value, error in zip(
                        fields, item.attributions, item.errors, strict=True
                    )
                ],
            }
            for item in explanations
        ],
    }


def label_of(document: Mapping[str, Any]) -> str:
    """The class that a request wants explained; empty where it names none.

    Raises:
        EverloopError: kind invalid: it is no text.
    """
    label = document.get("label", "")
    if type(label) is not str:
        message = "the body is not JSON of the expected shape: 'label' must be a string"
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field="label")
    return label


def described(served: Served) -> dict[str, Any]:
    """A Model."""
    model = served.model
    document = {
        "name": model.name,
        "version": model.version,
        "classes": model.classes,
        "inputs": [
            {"name": spec.name, "type": spec.type, "nullable": spec.nullable}
            for spec in model.inputs
        ],
        "serving_since": model.since,
        "previous_version": model.previous_version,
        "onnx_sha256": model.wanted.sha256,
        "engine": f"ENGINE_{model.engine.kind.name}",
    }
    if on := served.trial:
        document["on_trial"] = {
            "rollout": on.trial.rollout,
            "version": on.candidate.version,
            "strategy": on.trial.strategy,
            "percent": on.trial.percent,
        }
    return document


def pooled(wanted: Wanted) -> dict[str, Any]:
    """What is known about a model in a pool without waking the pool."""
    return {"name": wanted.model, "version": wanted.version, "pool": True}
