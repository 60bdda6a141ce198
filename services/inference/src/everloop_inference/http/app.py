"""Predictions over HTTP: one ASGI application with a fixed set of paths.

It is written against ASGI itself: a router and a middleware stack cost more than a prediction does.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Any, Final, NamedTuple, TypeVar

import orjson
import yaml
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from everloop_inference.domain import Answer, Call, Wanted
from everloop_inference.http import deadlines
from everloop_inference.http.routes import Asked, Route, route
from everloop_inference.metrics import Door
from everloop_inference.pools.pools import Pools
from everloop_inference.ports import HttpReply, HttpRequest
from everloop_inference.predict import Predictor
from everloop_inference.protocols import native_json, oip_json
from everloop_runtime.errors import HTTP_STATUS, INTERNAL, EverloopError, Kind, not_json
from everloop_runtime.telemetry import span

__all__ = ["HttpApp", "refusal", "refuse"]

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]
T = TypeVar("T")

_JSON: Final = (b"content-type", b"application/json")
_BINARY: Final = (b"content-type", b"application/octet-stream")
_TEXT: Final = (b"content-type", CONTENT_TYPE_LATEST.encode())
_CLOSE: Final = (b"connection", b"close")
_TRACE, _TIMEOUT, _ENCODING = b"traceparent", b"grpc-timeout", b"content-encoding"
_JSON_LENGTH: Final = b"inference-header-content-length"
_READ: Final = frozenset({_TRACE, _TIMEOUT, _ENCODING, _JSON_LENGTH})
"""Headers that mean something here."""
_NATIVE: Final = Door("http")
_OIP: Final = Door("http-oip")


class _TooLarge(Exception):
    """The body is larger than allowed."""


class _Disconnected(Exception):
    """The caller is gone before its request was complete, or before it was answered."""


@dataclass(slots=True)
class _Request:
    """One request, complete.

    Attributes:
        method: of HTTP.
        path: without host and query.
        route: what the path means.
        headers: those of `_READ`.
        body: decompressed.
        began: when it was complete, on the clock of `time.perf_counter`.
        receive: tells when the caller is gone.
    """

    method: str
    path: str
    route: Route
    headers: Mapping[bytes, bytes]
    body: bytes
    began: float
    receive: Receive

    def call(self) -> Call:
        """What the core must know about it.

        Raises:
            EverloopError: kind invalid: the timeout is none.
        """
        timeout = self.headers.get(_TIMEOUT)
        if timeout is None:
            return Call(self.began, len(self.body))
        return Call(self.began, len(self.body), self.began + deadlines.seconds(timeout))


class _Reply(NamedTuple):
    """An answer to a request."""

    status: int
    body: bytes
    headers: tuple[Header, ...] = (_JSON,)


class HttpApp:
    """The native API, the Open Inference Protocol, and `/metrics`.

    Attributes:
        draining: set to let every answer close its connection; `/v2/health/ready` then says no.
    """

    def __init__(
        self,
        predictor: Predictor,
        fingerprint: str,
        max_body_bytes: int,
        pools: Pools | None = None,
    ) -> None:
        """Takes what predicts, what tells this deployment from another, and what is passed on."""
        self.draining = False
        self._predictor = predictor
        self._models = predictor.models
        self._max_body = max_body_bytes
        self._pools = pools
        self._server = orjson.dumps(oip_json.server_metadata(fingerprint))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        headers = {key: value for key, value in scope["headers"] if key in _READ}
        try:
            trace = headers.get(_TRACE)
            if trace is None:
                reply = await self._reply(scope, headers, receive)
            else:
                with span(scope["path"], {"traceparent": trace.decode("latin-1")}):
                    reply = await self._reply(scope, headers, receive)
        except _Disconnected:
            return
        # What is left of a body that was too large would be read as the next request.
        await _answer(reply, send, close=self.draining or reply.status == 413)

    async def _reply(
        self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive
    ) -> _Reply:
        method, path = scope["method"], scope["path"]
        to = route(path)
        try:
            if method == "HEAD":  # the listener leaves the body out
                method = "GET"
            body = b"" if method == "GET" else await self._body(receive)
            if self._pools is not None and to.passed and to.model in self._pools:
                request = _Request(method, path, to, headers, body, time.perf_counter(), receive)
                return await self._pass(self._pools, request)
            if to.asked is Asked.NOTHING:
                raise _no_path(path)
            if method != to.method:
                return _not_allowed(method, to.method)
            if method == "GET":
                return self._get(to)
            if _ENCODING in headers:
                body = self._decompressed(headers[_ENCODING], body)
            request = _Request(method, path, to, headers, body, time.perf_counter(), receive)
            return await self._post(request)
        except _TooLarge:
            message = f"the body is larger than {self._max_body} bytes"
            error = EverloopError(Kind.INVALID, "REQUEST_TOO_LARGE", message)
            _door(path).refused(error.reason)
            return _refused(413, error)
        except EverloopError as error:
            _door(path).refused(error.reason)
            return _refused(HTTP_STATUS[error.kind], error)
        except _Disconnected:
            raise
        except Exception:
            log.exception("%s %s failed", method, path)
            _door(path).refused(INTERNAL.reason)
            return _refused(500, INTERNAL)

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

    def _decompressed(self, encoding: bytes, body: bytes) -> bytes:
        if encoding == b"identity":
            return body
        if encoding not in (b"gzip", b"deflate"):
            message = f"content-encoding {encoding.decode('latin-1')!r} is not gzip or deflate"
            raise EverloopError(Kind.INVALID, "UNSUPPORTED_ENCODING", message)
        # 32 more than the window: the format is told by its first bytes.
        inflating = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
        try:
            plain = inflating.decompress(body, self._max_body + 1)
        except zlib.error as error:
            raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", f"the body: {error}") from error
        if len(plain) > self._max_body:
            raise _TooLarge
        if not inflating.eof:
            raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", "the body is cut off")
        return plain

    async def _post(self, request: _Request) -> _Reply:
        match request.route.asked:
            case Asked.PREDICT:
                return await self._predict(request)
            case Asked.EXPLAIN:
                return await self._explain(request)
            case Asked.INFER:
                return await self._infer(request)
            case _:
                index = oip_json.repository(
                    self._models.answering, () if self._pools is None else self._pools.answering
                )
                return _Reply(200, orjson.dumps(index))

    async def _predict(self, request: _Request) -> _Reply:
        rows = native_json.rows_of(_parsed(request.body))
        waiting = self._predictor.rows(request.route.model, rows, request.call())
        answer = await self._awaited(request, waiting)
        content = orjson.dumps(native_json.answered(answer))
        _NATIVE.answered(answer.model.name, request.began)
        return _Reply(200, content)

    async def _explain(self, request: _Request) -> _Reply:
        document = _parsed(request.body)
        rows, label = native_json.rows_of(document), native_json.label_of(document)
        model, explanations = await self._predictor.explain(
            request.route.model, rows, label, request.call()
        )
        return _Reply(200, orjson.dumps(native_json.explained(model, explanations)))

    async def _infer(self, request: _Request) -> _Reply:
        text, binary = oip_json.split(request.body, request.headers.get(_JSON_LENGTH))
        asked = oip_json.request(_parsed(text), binary)
        waiting = self._predictor.tensors(
            request.route.model,
            request.route.version,
            partial(oip_json.quick, asked),
            partial(oip_json.tensors, asked),
            request.call(),
        )
        answer = await self._awaited(request, waiting)
        document, binaries = oip_json.response(answer, asked)
        content = orjson.dumps(document)
        _OIP.answered(answer.model.name, request.began)
        if not binaries:
            return _Reply(200, content)
        length = (_JSON_LENGTH, b"%d" % len(content))
        return _Reply(200, b"".join((content, *binaries)), (_BINARY, length))

    async def _pass(self, pools: Pools, request: _Request) -> _Reply:
        """Lets a model's pool answer."""
        timeout = request.headers.get(_TIMEOUT)
        passed = HttpRequest(
            request.method, request.path, tuple(request.headers.items()), request.body
        )
        seconds = None if timeout is None else deadlines.seconds(timeout)
        answer = asyncio.ensure_future(pools.http(request.route.model, passed, seconds))
        reply = await _watched(request, answer)
        return _Reply(reply.status, reply.body, reply.headers)

    async def _awaited(self, request: _Request, answer: asyncio.Future[Answer]) -> Answer:
        """Waits for an answer; where that may take a while, notices that the caller is gone.

        Raises:
            _Disconnected: the caller is gone.
        """
        if not self._predictor.batcher.crowded:
            return await answer
        return await _watched(request, answer)

    def _get(self, to: Route) -> _Reply:
        match to.asked:
            case Asked.LIVE:
                return _Reply(200, b'{"live":true}')
            case Asked.READY:
                ready = not self.draining
                return _Reply(200 if ready else 503, orjson.dumps({"ready": ready}))
            case Asked.SERVER:
                return _Reply(200, self._server)
            case Asked.LIST_NATIVE:
                models = [native_json.described(served) for served in self._models.all]
                models += [native_json.pooled(wanted) for wanted in self._pooled.values()]
                return _Reply(200, orjson.dumps({"models": models}))
            case Asked.LIST_OIP:
                return _Reply(200, orjson.dumps({"models": [*self._models.serving, *self._pooled]}))
            case Asked.DESCRIBE:
                served = self._models.served(to.model)
                return _Reply(200, orjson.dumps(native_json.described(served)))
            case Asked.METADATA:
                return self._metadata(to)
            case Asked.MODEL_READY:
                return self._ready(to)
            case Asked.OPENAPI:
                return _Reply(200, _openapi())
            case _:
                return _Reply(200, generate_latest(), (_TEXT,))

    def _metadata(self, to: Route) -> _Reply:
        served = self._models.served(to.model)
        metadata = oip_json.model_metadata(served.named(to.version), served.versions)
        return _Reply(200, orjson.dumps(metadata))

    def _ready(self, to: Route) -> _Reply:
        if self._pools is not None and to.model in self._pools:
            self._pools.version(to.model, to.version)
        else:
            self._models.get(to.model, to.version)
        return _Reply(200, orjson.dumps({"name": to.model, "ready": True}))

    @property
    def _pooled(self) -> Mapping[str, Wanted]:
        return self._pools.known if self._pools is not None else {}


def refusal(error: EverloopError) -> HttpReply:
    """The error as the answer to a request."""
    reply = _refused(HTTP_STATUS[error.kind], error)
    return HttpReply(reply.status, reply.headers, reply.body)


async def refuse(scope: Scope, error: EverloopError, send: Send) -> None:
    """Answers a request whose body nobody reads, so that the connection must close."""
    _door(scope["path"]).refused(error.reason)
    await _answer(_refused(HTTP_STATUS[error.kind], error), send, close=True)


async def _answer(reply: _Reply, send: Send, *, close: bool) -> None:
    headers = [*reply.headers, (b"content-length", b"%d" % len(reply.body))]
    if close:
        headers.append(_CLOSE)
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


async def _watched(request: _Request, answer: asyncio.Future[T]) -> T:
    """Waits for an answer, which is cancelled when the caller is gone.

    Raises:
        _Disconnected: the caller is gone.
    """
    watching = asyncio.ensure_future(request.receive())
    watching.add_done_callback(lambda _: answer.cancel())
    try:
        return await answer
    except asyncio.CancelledError:
        if watching.done():
            raise _Disconnected from None
        raise
    finally:
        watching.cancel()


@cache
def _openapi() -> bytes:
    text = resources.files(__package__).joinpath("openapi.yaml").read_text()
    return orjson.dumps(yaml.safe_load(text))


def _door(path: str) -> Door:
    return _OIP if path.startswith("/v2/") else _NATIVE


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EverloopError(
            Kind.INVALID, "MALFORMED_REQUEST", f"the body is not JSON: {not_json(error)}"
        ) from error
    if type(document) is not dict:
        raise EverloopError(Kind.INVALID, "MALFORMED_REQUEST", "the body is not a JSON object")
    return document


def _no_path(path: str) -> EverloopError:
    return EverloopError(Kind.NOT_FOUND, "PATH_NOT_FOUND", f"there is nothing at {path}")


def _not_allowed(method: str, allowed: str) -> _Reply:
    message = f"{method} is not a method of this path, {allowed} is"
    reply = _refused(405, EverloopError(Kind.INVALID, "METHOD_NOT_ALLOWED", message))
    return reply._replace(headers=(*reply.headers, (b"allow", allowed.encode())))


def _refused(status: int, error: EverloopError) -> _Reply:
    body = orjson.dumps({"error": error.message, "reason": error.reason, **error.metadata})
    if status == 401:
        return _Reply(status, body, (_JSON, (b"www-authenticate", b"Bearer")))
    if not error.retry_after:
        return _Reply(status, body)
    # The header knows whole seconds only.
    return _Reply(status, body, (_JSON, (b"retry-after", b"%d" % math.ceil(error.retry_after))))
