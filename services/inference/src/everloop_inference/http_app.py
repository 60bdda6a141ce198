"""Predictions over HTTP: one ASGI application with a fixed set of paths.

It is written against ASGI itself: a router and a middleware stack cost more than a prediction does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final

import orjson
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from everloop_inference import oip_json
from everloop_inference.domain import Answer, ServedModel
from everloop_inference.metrics import ERRORS, LATENCY, REQUESTS
from everloop_inference.predict import Predictor
from everloop_runtime.errors import HTTP_STATUS, EverloopError, Kind
from everloop_runtime.telemetry import span

__all__ = ["HttpApp"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON: Final = (b"content-type", b"application/json")
_TEXT: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())
_CLOSE: Final = (b"connection", b"close")
_NATIVE, _OIP = "http", "http-oip"
_INTERNAL: Final = EverloopError(
    Kind.INTERNAL, "INTERNAL", "internal error; the server's log has the details"
)
_UNREADABLE: Final = "the body is not JSON of the expected shape"


class _TooLarge(Exception):
    """The body is larger than allowed."""


class _Disconnected(Exception):
    """The caller is gone before its request was complete."""


class HttpApp:
    """The native API, the Open Inference Protocol, and `/metrics`.

    Attributes:
        draining: set to let every answer close its connection; `/v2/health/ready` then says no.
    """

    def __init__(self, predictor: Predictor, fingerprint: str, max_body_bytes: int) -> None:
        """Takes what predicts, and what tells this deployment from another."""
        self.draining = False
        self._predictor = predictor
        self._models = predictor.models
        self._max_body = max_body_bytes
        self._server = orjson.dumps(oip_json.server_metadata(fingerprint))
        self._latency = {door: LATENCY.labels(door) for door in (_NATIVE, _OIP)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        began = time.perf_counter()
        path: str = scope["path"]
        method: str = scope["method"]
        try:
            body = b"" if method == "GET" else await self._body(receive)
            trace = next((value for key, value in scope["headers"] if key == b"traceparent"), None)
            if trace is None:
                status, content, kind = self._answer(method, path, body, began)
            else:
                with span(path, {"traceparent": trace.decode("latin-1")}):
                    status, content, kind = self._answer(method, path, body, began)
        except _TooLarge:
            message = f"the body is larger than {self._max_body} bytes"
            ERRORS.labels(_door(path), "REQUEST_TOO_LARGE").inc()
            error = EverloopError(Kind.INVALID, "REQUEST_TOO_LARGE", message)
            status, content, kind = 413, _error_body(error), _JSON
        except _Disconnected:
            return
        headers = [kind, (b"content-length", b"%d" % len(content))]
        # What is left of a body that was too large would be read as the next request.
        if self.draining or status == 413:
            headers.append(_CLOSE)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _body(self, receive: Receive) -> bytes:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Disconnected
        body: bytes = message.get("body", b"")
        if not message.get("more_body"):
            if len(body) > self._max_body:
                raise _TooLarge
            return body
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body:
                raise _TooLarge
            parts.append(part)
        return b"".join(parts)

    def _answer(
        self, method: str, path: str, body: bytes, began: float
    ) -> tuple[int, bytes, tuple[bytes, bytes]]:
        """Returns status, body and content type."""
        try:
            if method == "POST":
                return 200, self._post(path, body, began), _JSON
            if method == "GET":
                return self._get(path)
            message = f"{method} is not a method of this path"
            return (
                405,
                _error_body(EverloopError(Kind.INVALID, "METHOD_NOT_ALLOWED", message)),
                _JSON,
            )
        except EverloopError as error:
            ERRORS.labels(_door(path), error.reason).inc()
            return HTTP_STATUS[error.kind], _error_body(error), _JSON
        except Exception:
            log.exception("%s %s failed", method, path)
            ERRORS.labels(_door(path), _INTERNAL.reason).inc()
            return 500, _error_body(_INTERNAL), _JSON

    def _post(self, path: str, body: bytes, began: float) -> bytes:
        match path.split("/"):
            case ["", "v1", "models", target] if target.endswith(":predict"):
                door, answer, content = _NATIVE, *self._predict(target[: -len(":predict")], body)
            case ["", "v2", "models", name, "infer"]:
                door, answer, content = _OIP, *self._infer(name, "", body)
            case ["", "v2", "models", name, "versions", version, "infer"]:
                door, answer, content = _OIP, *self._infer(name, version, body)
            case _:
                raise _no_path(path)
        REQUESTS.labels(door, answer.model.name).inc()
        self._latency[door].observe(time.perf_counter() - began)
        return content

    def _predict(self, name: str, body: bytes) -> tuple[Answer, bytes]:
        document = _parsed(body)
        rows = document.get("rows")
        if type(rows) is not list or not all(type(row) is dict for row in rows):
            message = f"{_UNREADABLE}: 'rows' must be a list of objects"
            raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", message, field="rows")
        answer = self._predictor.rows(name, rows, len(body))
        return answer, orjson.dumps(_native(answer))

    def _infer(self, name: str, version: str, body: bytes) -> tuple[Answer, bytes]:
        request = oip_json.request(_parsed(body))
        answer = self._predictor.tensors(name, version, request.tensors, len(body))
        return answer, orjson.dumps(oip_json.response(answer, request))

    def _get(self, path: str) -> tuple[int, bytes, tuple[bytes, bytes]]:
        match path.strip("/").split("/"):
            case ["v2", "health", "live"]:
                return 200, b'{"live":true}', _JSON
            case ["v2", "health", "ready"]:
                ready = not self.draining
                return (200 if ready else 503), orjson.dumps({"ready": ready}), _JSON
            case ["v2"]:
                return 200, self._server, _JSON
            case ["v1", "models"]:
                models = [_describe(model) for model in self._models.serving.values()]
                return 200, orjson.dumps({"models": models}), _JSON
            case ["v1", "models", name]:
                return 200, orjson.dumps(_describe(self._models.get(name))), _JSON
            case ["v2", "models", name, "ready"]:
                model = self._models.get(name)
                return 200, orjson.dumps({"name": model.name, "ready": True}), _JSON
            case ["v2", "models", name, "versions", version, "ready"]:
                model = self._models.get(name, version)
                return 200, orjson.dumps({"name": model.name, "ready": True}), _JSON
            case ["v2", "models", name]:
                return 200, orjson.dumps(oip_json.model_metadata(self._models.get(name))), _JSON
            case ["v2", "models", name, "versions", version]:
                model = self._models.get(name, version)
                return 200, orjson.dumps(oip_json.model_metadata(model)), _JSON
            case ["metrics"]:
                return 200, generate_latest(), _TEXT
            case _:
                raise _no_path(path)


def _door(path: str) -> str:
    return _OIP if path.startswith("/v2/") else _NATIVE


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EverloopError(
            Kind.INVALID, "MALFORMED_REQUEST", f"the body is not JSON: {error}"
        ) from error
    if type(document) is not dict:
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", f"{_UNREADABLE}: not an object")
    return document


def _no_path(path: str) -> EverloopError:
    return EverloopError(Kind.NOT_FOUND, "PATH_NOT_FOUND", f"there is nothing at {path}")


def _error_body(error: EverloopError) -> bytes:
    return orjson.dumps({"error": error.message, "reason": error.reason, **error.metadata})


def _native(answer: Answer) -> dict[str, Any]:
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


def _describe(model: ServedModel) -> dict[str, Any]:
    return {
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
    }
