"""HTTP/1.1 for one ASGI application: llhttp reads, one write answers.

uvicorn does the same for any application: it checks and copies headers that are ours, writes head and body apart (two
system calls, and two wake-ups of the caller), and sets a timer with every answer. Here a request is complete before
the application begins, an answer leaves in one piece, and what depends on time is looked at once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

import httptools

from everloop_inference.addresses import accepted

__all__ = ["HttpLimits", "HttpServer"]

log = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
App = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]],
    Awaitable[None],
]

_STATUS: Final = {item.value: b"HTTP/1.1 %d " % item + item.phrase.encode() for item in HTTPStatus}
_CLOSE: Final = (b"connection", b"close")
_FRAMING: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})
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
_HOST: Final = _refusal(400, "MALFORMED_REQUEST", "HTTP/1.1 asks for exactly one Host")
_CODING: Final = _refusal(501, "TRANSFER_CODING", "chunked is the only transfer coding here")
_LARGE: Final = _refusal(413, "REQUEST_TOO_LARGE", "the body is too large")
_LATE: Final = _refusal(408, "REQUEST_TIMEOUT", "the request did not come in time")
_LONG_HEAD: Final = _refusal(431, "HEADERS_TOO_LARGE", "the headers are too large")
_FAILED: Final = _refusal(500, "INTERNAL", "internal error; the server's log has the details")
_LOADED: Final = _refusal(503, "OVERLOADED", "too much is being sent", (b"retry-after", b"1"))
_CROWDED: Final = _refusal(503, "OVERLOADED", "too many connections", (b"retry-after", b"1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """Bounds of one server.

    Attributes:
        connections: at once; beyond it a new one is answered 503 and closed, whatever it sends.
        body_bytes: of a request after which no more of it is read; the application refuses what is longer.
        received_bytes: bodies of all connections together until they are answered; beyond it 503, except for what stays
            within a connection's even share.
        head_bytes: of request line and headers, and of what a body brings besides its content at a stretch, such as
            trailers; beyond it 431.
        idle_seconds: time without a request after which a connection is closed.
        request_seconds: time for request line and headers, and longest pause in a body; beyond it 408.
        stall_seconds: time for which a caller may take nothing of an answer.
        linger_seconds: time for which a caller that is refused may go on sending, so that it reads why; what it sends
            is dropped, up to `LINGER_BODIES` times `body_bytes`.
    """

    connections: int = 4096
    body_bytes: int = 32 * 1024 * 1024
    received_bytes: int = 256 * 1024 * 1024
    head_bytes: int = 64 * 1024
    idle_seconds: float = 75.0
    request_seconds: float = 60.0
    stall_seconds: float = 60.0
    linger_seconds: float = 2.0


LINGER_SECONDS = 0.5
"""Time for requests on their way when a server takes no more connections."""
LINGER_BODIES = 4
CROWD = 256
"""Connections beyond the limit that may linger at once."""


class HttpServer:
    """Listens, and keeps the connections.

    Attributes:
        app: the application. It is told method, path and headers (names in lower case), and the whole body at once; it
            sends an answer's head and all of its body, with `content-length`.
        limits: what callers may cost.
        draining: True once it stops.
        connections: those that are open.
        received: bytes of bodies that are not answered yet, over all connections.
        share: bytes of a body that are taken from everybody.
    """

    def __init__(self, app: App, limits: HttpLimits) -> None:
        """Listens to nobody yet."""
        self.app = app
        self.limits = limits
        self.draining = False
        self.connections: set[_Connection] = set()
        self.received = 0
        self.share = limits.received_bytes // limits.connections
        self._crowd: set[_Connection] = set()
        self._emptied = asyncio.Event()

    async def start(self, listening: socket.socket) -> None:
        """Accepts connections of a bound socket, which it closes in the end."""
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._server = await self._loop.create_server(
            lambda: _Connection(self, self._loop), sock=listening, backlog=2048
        )
        self._checking = self._loop.call_later(1.0, self._check)

    async def close(self) -> None:
        """Takes no new connections, and gives requests that are on their way a moment to arrive."""
        self.draining = True
        late = accepted(self._listening)
        self._server.close()
        for waiting in late:
            await self._loop.connect_accepted_socket(lambda: _Connection(self, self._loop), waiting)
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), LINGER_SECONDS)

    async def stop(self, seconds: float) -> None:
        """Closes, answers what it has been asked, and ends its connections; after so many seconds at once."""
        deadline = self._loop.time() + seconds
        if not self.draining:
            await self.close()
        for connection in tuple(self.connections):
            connection.drain()
        if self.connections:
            try:
                left = max(0.0, deadline - self._loop.time())
                await asyncio.wait_for(self._emptied.wait(), left)
            except TimeoutError:
                log.warning("%d HTTP connections are cut off", len(self.connections))
        self._checking.cancel()
        for connection in (*self.connections, *self._crowd):
            connection.abort()

    def admit(self, connection: _Connection) -> bool:
        """Takes a new connection, if there is room."""
        if len(self.connections) < self.limits.connections:
            self.connections.add(connection)
            return True
        return False

    def turn_away(self, connection: _Connection) -> bool:
        """Whether a connection that there is no room for may linger."""
        if len(self._crowd) < CROWD:
            self._crowd.add(connection)
            return True
        return False

    def left(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._crowd.discard(connection)
        self.connections.discard(connection)
        if self.draining and not self.connections:
            self._emptied.set()

    def _check(self) -> None:
        now = self._loop.time()
        for connection in (*self.connections, *self._crowd):
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
        self._hosts = 0
        self._length = 0
        self._asks = False  # whether to send the body
        self._refused = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: bytes | bytearray = b""
        self._size = 0
        self._head = 0  # bytes since the last headers or piece of a body, at most one read less
        self._reading = self._in_body = False
        self._began = self._heard = 0.0
        self._unsent = 0  # bytes of answers when it was last checked
        self._moved = 0.0  # when they were last seen to become less
        # What waits for the answer before it: requests, and in the end a refusal.
        self._waiting: deque[_Exchange | bytes] = deque()
        self._task: asyncio.Task[None] | None = None
        self._latest: _Exchange | None = None
        self._deaf = False  # nothing of what comes is a request any more
        self._unread = False  # and more of it may come than the caller was told to send
        self._dropped = 0
        self._lingers: float | None = None  # since then nothing is left but to let the caller read
        self._paused = False
        self._full = False
        self._room: asyncio.Future[None] | None = None
        self.gone: asyncio.Future[None] | None = None
        self.lost = False

    # What the loop tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._began = self._heard = self._loop.time()
        if not self._server.admit(self):
            self._deaf = True
            self._unread = self._server.turn_away(self)
            self.answer(_CROWDED, keep=False)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            self._drop(len(data))
            return
        self._heard = self._loop.time()
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
        if self._reading and self._head > self._limits.head_bytes:
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
        self._forget()
        self._server.left(self)
        self._wake()
        if self.gone is not None and not self.gone.done():
            self.gone.set_result(None)

    # What the parser tells it.

    def on_message_begin(self) -> None:
        self._url, self._headers = b"", []
        self._hosts = self._length = 0
        self._asks, self._refused = False, b""
        self._reading, self._in_body = not self._deaf, False
        self._began = self._heard

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_body:  # a trailer: it says nothing here
            return
        name = name.lower()
        self._headers.append((name, value))
        if name in _FRAMING:
            self._frame(name, value)

    def _frame(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self._length = int(value)
        elif name == b"expect":
            self._asks = value.lower() == b"100-continue"
        elif value.strip().lower() != b"chunked":
            self._refused = _CODING

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._head = 0
        self._began = self._heard
        if self._hosts != 1 and (self._hosts or self._parser.get_http_version() != "1.0"):
            self._refuse(_HOST)
        elif self._refused:
            self._refuse(self._refused)
        elif self._length > self._limits.body_bytes:
            self._refuse(_LARGE)
        elif self._asks and self._task is None and not self._deaf:
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        if self._deaf:
            return
        self._head = 0
        self._began = self._heard
        if not self._size:
            self._body = body
        else:
            # Not a list of pieces: they may be many, and each costs more than a byte.
            if type(self._body) is bytes:
                self._body = bytearray(self._body)
            self._body += body
        self._size += len(body)
        self._server.received += len(body)
        if self._size > self._limits.body_bytes:
            self._unread = True
            self._complete(keep=False)
        elif (
            self._size > self._server.share and self._server.received > self._limits.received_bytes
        ):
            self._refuse(_LOADED)

    def on_message_complete(self) -> None:
        if not self._deaf:
            keeps = self._parser.should_keep_alive() and self._parser.get_http_version() != "1.0"
            self._complete(keeps)

    # Requests and answers.

    def _complete(self, keep: bool) -> None:
        self._reading = self._in_body = False
        body = bytes(self._body)
        method = self._parser.get_method().decode("ascii")
        exchange = _Exchange(self, method, _path(self._url), self._headers, body, keep)
        self._body, self._size = b"", 0
        self._deaf = not keep
        self._latest = exchange
        self._queue(exchange)

    def _refuse(self, answer: bytes) -> None:
        """Says what is wrong after the answers that are due, and closes."""
        if self._deaf:
            return
        self._deaf = self._unread = True
        self._reading = False
        self._drop_body()
        self._queue(answer)

    def _drop_body(self) -> None:
        """Gives up what has come of a request."""
        self._server.received -= self._size
        self._body, self._size = b"", 0

    def _forget(self) -> None:
        """Gives up what nobody will be answered."""
        self._drop_body()
        for item in self._waiting:
            if isinstance(item, _Exchange):
                self._server.received -= item.size
        self._waiting.clear()

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
            finally:
                self._server.received -= item.size
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
        if self.lost or self._lingers is not None or self._transport.is_closing():
            return
        self._transport.write(content)
        if not keep or (self._server.draining and not self._waiting):
            self._deaf = True
            self._forget()
            self._close()

    def _close(self) -> None:
        """Closes, or first lets a caller read that is still sending: the socket of one that is not read is reset."""
        if self._unread and self._dropped <= LINGER_BODIES * self._limits.body_bytes:
            self._lingers = self._loop.time()
            self._transport.write_eof()
        else:
            self._transport.close()

    def _drop(self, size: int) -> None:
        self._dropped += size
        if self._dropped > LINGER_BODIES * self._limits.body_bytes:
            if self._lingers is not None:
                self._transport.abort()
            elif self._task is not None:
                self._pause()

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
        if self._task is None and not self._reading and self._lingers is None:
            self._transport.close()

    def abort(self) -> None:
        """Ends without waiting for anything."""
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    def check(self, now: float) -> None:
        """Enforces what depends on time; called every second."""
        limits = self._limits
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent or not self._unsent:
            self._moved = now
        self._unsent = unsent
        if unsent and now - self._moved > limits.stall_seconds:
            self.abort()
        elif self._lingers is not None:
            if unsent:
                self._lingers = now
            elif now - self._lingers > limits.linger_seconds:
                self.abort()
        elif self._task is not None or unsent:
            # An answer is due or on its way; time counts from when it is there.
            self._began = self._heard = now
        elif self._reading:
            if now - self._began > limits.request_seconds:
                self._refuse(_LATE)
        elif now - self._heard > limits.idle_seconds:
            self._transport.close()


class _Exchange:
    """One request and its answer, as the application sees them."""

    __slots__ = ("_body", "_connection", "_start", "answered", "keep", "scope", "size")

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
        self.size = len(body)
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
        # A slash that is escaped is part of a name: it stays escaped, and parts nothing.
        path = unquote_to_bytes(path.replace(b"%2F", b"%252F").replace(b"%2f", b"%252f"))
    return path.decode("utf-8", "replace")
