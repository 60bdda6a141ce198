"""HTTP/1.1 for one ASGI application: llhttp reads, one write answers.

uvicorn does the same for any application: it checks and copies headers that are ours, writes head and body apart (two
system calls, and two wake-ups of the caller), and sets a timer with every answer. Here a request is complete before
the application begins, an answer leaves in one piece, and what depends on time is looked at once a second.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

import httptools

__all__ = ["HttpLimits", "HttpServer"]

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

_STATUS: Final = {item.value: b"HTTP/1.1 %d " % item + item.phrase.encode() for item in HTTPStatus}
_CLOSE: Final = (b"connection", b"close")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def _refusal(status: int, reason: str, text: str, *headers: tuple[bytes, bytes]) -> bytes:
    body = b'{"error":"%b","reason":"%b"}' % (text.encode(), reason.encode())
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return _written(status, [*fields, *headers, _CLOSE], body)


def _written(status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """An answer as it travels."""
    head = b"".join([b"\r\n%b: %b" % header for header in headers])
    return b"%b%b\r\n\r\n%b" % (_STATUS[status], head, body)


_MALFORMED: Final = _refusal(400, "MALFORMED_REQUEST", "this is not HTTP/1.1")
_LATE: Final = _refusal(408, "REQUEST_TIMEOUT", "the request did not come in time")
_LONG_HEAD: Final = _refusal(431, "HEADERS_TOO_LARGE", "the headers are too large")
_FAILED: Final = _refusal(500, "INTERNAL", "internal error; the server's log has the details")
_CROWDED: Final = _refusal(503, "OVERLOADED", "too many connections", (b"retry-after", b"1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of one server.

    Attributes:
        connections: at once; beyond it a new one is answered 503 and closed.
        body_bytes: of a request after which no more of it is read; the application refuses what is longer.
        head_bytes: of request line and headers; beyond it 431.
        idle_seconds: time without a request after which a connection is closed.
        request_seconds: time for request line and headers, and longest pause in a body; beyond it 408.
        stall_seconds: time for which a caller may leave its full socket unread.
    """

    connections: int = 4096
    body_bytes: int = 32 * 1024 * 1024
    head_bytes: int = 64 * 1024
    idle_seconds: float = 75.0
    request_seconds: float = 60.0
    stall_seconds: float = 60.0


class HttpServer:
    """Listens, and keeps the connections.

    Attributes:
        app: the application. It is told method, path and headers (names in lower case), and the whole body at once; it
            sends an answer's head and all of its body, with `content-length`.
        limits: what callers may cost.
        draining: True once it stops.
        connections: those that are open.
    """

    def __init__(self, app: App, limits: HttpLimits) -> None:
        """Listens to nobody yet."""
        self.app = app
        self.limits = limits
        self.draining = False
        self.connections: set[_Connection] = set()
        self._emptied = asyncio.Event()

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections of a bound socket, which it closes in the end."""
        self._loop = asyncio.get_running_loop()
        self._server = await self._loop.create_server(
            lambda: _Connection(self, self._loop), sock=listening, backlog=2048
        )
        self._checking = self._loop.call_later(1.0, self._check)

    async def stop(self, seconds: float) -> None:
        """Takes no new connections, answers what it has been asked, and closes; after so many seconds at once."""
        self.draining = True
        self._server.close()
        for connection in tuple(self.connections):
            connection.drain()
        if self.connections:
            try:
                await asyncio.wait_for(self._emptied.wait(), seconds)
            except TimeoutError:
                log.warning("%d HTTP connections are cut off", len(self.connections))
        self._checking.cancel()
        for connection in tuple(self.connections):
            connection.abort()

    def left(self, connection: _Connection) -> None:
        """A connection has ended."""
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._emptied.set()

    def _check(self) -> None:
        now = self._loop.time()
        for connection in tuple(self.connections):
            connection.check(now)
        self._checking = self._loop.call_later(1.0, self._check)


class _Connection(asyncio.Protocol):
    """One connection: reads requests, and answers them one after the other."""

    def __init__(self, server: HttpServer, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._limits = server.limits
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._size = 0
        self._head = 0  # bytes that came before the headers were complete
        self._reading = self._in_body = False
        self._began = self._heard = 0.0
        # What waits for the answer before it: requests, and in the end a refusal.
        self._waiting: deque[_Exchange | bytes] = deque()
        self._task: asyncio.Task[None] | None = None
        self._latest: _Exchange | None = None
        self._deaf = False  # nothing of what comes is a request any more
        self._paused = False
        self._full = False
        self._room: asyncio.Future[None] | None = None
        self._crowded = False
        self.gone: asyncio.Future[None] | None = None
        self.lost = False

    # What the loop tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._began = self._heard = self._loop.time()
        self._crowded = len(self._server.connections) >= self._limits.connections
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._heard = self._loop.time()
        if not self._in_body:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # The offer is not taken: the request has been understood, what follows it would not be.
            self._deaf = True
            if self._latest is not None:
                self._latest.keep = False
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)
        if self._reading and not self._in_body and self._head > self._limits.head_bytes:
            self._refuse(_LONG_HEAD)
        if self._waiting:
            self._pause()

    def pause_writing(self) -> None:
        self._full = True
        self._pause()

    def resume_writing(self) -> None:
        self._full = False
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = self._deaf = True
        self._waiting.clear()
        self._server.left(self)
        self._wake()
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)

    # What the parser tells it.

    def on_message_begin(self) -> None:
        self._url, self._headers, self._parts, self._size = b"", [], [], 0
        self._reading, self._in_body = True, False
        self._began = self._heard

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self._headers.append((name, value))
        if name == b"expect" and value.lower() == b"100-continue" and self._task is None:
            self._transport.write(_CONTINUE)

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._head = 0

    def on_body(self, body: bytes) -> None:
        if self._deaf:
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > self._limits.body_bytes:
            self._complete(keep=False)

    def on_message_complete(self) -> None:
        if not self._deaf:
            keeps = self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
            self._complete(keeps)

    # Requests and answers.

    def _complete(self, keep: bool) -> None:
        self._reading = self._in_body = False
        if self._crowded:
            self._refuse(_CROWDED)
            return
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        method = self._parser.get_method().decode("ascii")
        exchange = _Exchange(self, method, _path(self._url), self._headers, body, keep)
        self._parts = []
        self._deaf = not keep
        self._latest = exchange
        self._queue(exchange)

    def _refuse(self, answer: bytes) -> None:
        """Says what is wrong after the answers that are due, and closes."""
        self._deaf = True
        self._reading = False
        self._queue(answer)

    def _queue(self, item: _Exchange | bytes) -> None:
        if self._task is None:
            self._task = self._loop.create_task(self._work(item))
        else:
            self._waiting.append(item)

    async def _work(self, first: _Exchange | bytes) -> None:
        """Answers a request, and those that came meanwhile."""
        waiting, item = self._waiting, first
        while True:
            if isinstance(item, bytes):
                self.answer(item, keep=False)
                break
            try:
                await self._server.app(item.scope, item.receive, item.send)
            except Exception:
                log.exception("the HTTP application failed")
            if not item.answered:
                self.answer(_FAILED, keep=False)
            while self._full and not self.lost:
                self._room = self._loop.create_future()
                await self._room
            if not waiting:
                break
            item = waiting.popleft()
        self._task = None
        if self._paused and not self._full and not self.lost:
            self._paused = False
            self._transport.resume_reading()

    def answer(self, content: bytes, keep: bool) -> None:
        """Writes an answer, and closes behind it if the connection is not kept."""
        if self.lost or self._transport.is_closing():
            return
        self._transport.write(content)
        if not keep or (self._server.draining and not self._waiting):
            self._deaf = True
            self._waiting.clear()
            self._transport.close()

    def _pause(self) -> None:
        if not self._paused and not self.lost:
            self._paused = True
            self._transport.pause_reading()

    def _wake(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        elif self._paused and self._task is None and not self.lost:
            self._paused = False
            self._transport.resume_reading()

    # The end.

    def drain(self) -> None:
        """Ends after the answers that are due; at once where there are none."""
        if self._task is None and not self._reading:
            self._transport.close()

    def abort(self) -> None:
        """Ends without waiting for anything."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    def check(self, now: float) -> None:
        """Enforces what depends on time; called every second."""
        limits = self._limits
        if self._full:
            if now - self._heard > limits.stall_seconds:
                self.abort()
        elif self._task is not None:
            # An answer is due; time counts from when it is there.
            self._heard = now
        elif self._reading:
            since = self._heard if self._in_body else self._began
            if now - since > limits.request_seconds:
                self._refuse(_LATE)
        elif now - self._heard > limits.idle_seconds:
            self._transport.close()


class _Exchange:
    """One request and its answer, as the application sees them."""

    __slots__ = ("_body", "_connection", "_start", "answered", "keep", "scope")

    def __init__(
        self,
        connection: _Connection,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        keep: bool,
    ) -> None:
        self.scope: Message = {"type": "http", "method": method, "path": path, "headers": headers}
        self.keep = keep
        self.answered = False
        self._connection = connection
        self._body: bytes | None = body
        self._start: Message = {}

    async def receive(self) -> Message:
        """The body, and after it that the caller is gone."""
        body, self._body = self._body, None
        if body is not None:
            return {"type": "http.request", "body": body, "more_body": False}
        connection = self._connection
        if not connection.lost:
            if connection.gone is None:
                connection.gone = asyncio.get_running_loop().create_future()
            await asyncio.shield(connection.gone)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes head and body of the answer."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        headers = self._start["headers"]
        if _CLOSE in headers:
            self.keep = False
        elif not self.keep:
            headers.append(_CLOSE)
        body = b"" if self.scope["method"] == "HEAD" else message["body"]
        self.answered = True
        self._connection.answer(_written(self._start["status"], headers, body), self.keep)


def _path(url: bytes) -> str:
    """The path of a request's target, without its query and with its escapes resolved."""
    if url[:1] != b"/":
        try:
            url = httptools.parse_url(url).path or b"/"
        except httptools.HttpParserInvalidURLError:
            return ""
    path, _, _ = url.partition(b"?")
    if b"%" in path:
        path = unquote_to_bytes(path)
    return path.decode("utf-8", "replace")
