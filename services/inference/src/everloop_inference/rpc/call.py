"""One call: what a handler may ask and tell, and how its messages and its end come and go."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc

from everloop_inference.rpc.messages import ACCEPTED, Inbox, frame, too_large, unpack
from everloop_inference.rpc.metadata import Fields, Metadata, decode, encode
from everloop_inference.rpc.methods import Method
from everloop_inference.rpc.status import Abort, trailers

if TYPE_CHECKING:
    from everloop_inference.rpc.connection import Connection

__all__ = ["Call"]

log = logging.getLogger(__name__)

_OK: Final = grpc.StatusCode.OK
# What an unread message takes besides its content.
_MESSAGE_BYTES: Final = 128
_PLAIN: Final = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", ACCEPTED),
]
_COMPRESSIONS: Final = {
    grpc.Compression.NoCompression: None,
    grpc.Compression.Deflate: b"deflate",
    grpc.Compression.Gzip: b"gzip",
}


class Call(grpc.aio.ServicerContext[Any, Any]):
    """A call on its stream. The base class documents what handlers use.

    Attributes:
        stream_id: its HTTP/2 stream.
        started: True once the response headers are on their way.
        complete: True once the caller has sent everything.
        ended: True once the call has its status, or nobody wants one.
        since: when it began, on the loop's clock.
        deadline: when it must have ended, on the loop's clock.
    """

    # Most calls set none of these: they cost nothing until then.
    started = False
    complete = False
    ended = False
    deadline: float | None = None
    _inbox: Inbox | None = None
    _message: bytes | None = None
    _unread: deque[tuple[bool, bytes]] | None = None
    _waiting = 0
    _unacknowledged = 0
    _held = 0
    _reader: asyncio.Future[None] | None = None
    _task: asyncio.Future[Any] | None = None
    _timer: asyncio.TimerHandle | None = None
    _cancelled = False
    _code: grpc.StatusCode | None = None
    _details = ""
    _trailing: Metadata = ()
    _encoding: bytes | None = None
    _plain_next = False
    _callbacks: tuple[Callable[[Any], None], ...] = ()

    def __init__(
        self,
        connection: Connection,
        stream_id: int,
        method: Method,
        headers: Iterable[tuple[bytes, bytes]],
        since: float,
    ) -> None:
        """Takes the request's headers; the caller is told nothing yet."""
        self.stream_id = stream_id
        self.since = since
        self._connection = connection
        self._method = method
        self._headers = headers

    # What the connection tells it.

    def begin(self) -> None:
        """Called once, after construction: a method that takes a stream starts with its headers."""
        if self._method.requests:
            self._unread = deque()
            self._run(self._stream(_Requests(self)))

    def receive(self, data: bytes, last: bool) -> None:
        """Takes what came in a DATA frame."""
        self.complete = last
        try:
            if self._unread is not None:
                self._receive_more(self._unread, data)
            else:
                self._receive_one(data)
        except Abort as error:
            self.fail(error.code, error.details)

    def cancel(self) -> None:
        """Ends the call without a word: the caller is gone or wants nothing any more."""
        if not self.ended:
            self._cancelled = True
            self._settle()
            self._stop()

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """Ends the call over its handler's head."""
        self._cancelled = True
        self.finish(code, details)
        self._stop()

    def expire(self) -> None:
        """Ends the call because its time is up."""
        self.fail(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        self._connection.soon()

    @property
    def waits(self) -> bool:
        """True while the one message of a unary request is incomplete."""
        return self._unread is None and not self.complete

    # Requests.

    def _receive_one(self, data: bytes) -> None:
        connection = self._connection
        size = len(data)
        connection.acknowledge(self.stream_id, size)
        if (
            self.complete
            and self._inbox is None
            and size >= 5
            and not data[0]
            and 5 + int.from_bytes(data[1:5]) == size <= connection.limits.message_bytes
        ):
            self._start(data[5:])
            return
        for packed, content in self._feed(data):
            if self._message is not None:
                raise Abort(grpc.StatusCode.INTERNAL, "more than one message for a unary request")
            self._message = self._plain(packed, content)
        assert self._inbox is not None
        self._hold(len(self._inbox) + len(self._message or b""))
        if not self.complete:
            return
        if self._inbox or self._message is None:
            raise Abort(grpc.StatusCode.INTERNAL, "the request ends before its message does")
        self._start(self._message)

    def _receive_more(self, unread: deque[tuple[bool, bytes]], data: bytes) -> None:
        self._unacknowledged += len(data)
        for packed, content in self._feed(data):
            unread.append((packed, content))
            self._waiting += len(content) + _MESSAGE_BYTES
        assert self._inbox is not None
        if self.complete and self._inbox:
            raise Abort(grpc.StatusCode.INTERNAL, "the request ends inside a message")
        self._hold(self._waiting + len(self._inbox))
        if self._reader is None:
            return
        if unread or self.complete:
            if not self._reader.done():
                self._reader.set_result(None)
        else:
            self._acknowledge(self._unacknowledged)

    def _feed(self, data: bytes) -> list[tuple[bool, bytes]]:
        if self._inbox is None:
            self._inbox = Inbox(self._connection.limits.message_bytes)
        return self._inbox.feed(data)

    def _hold(self, size: int) -> None:
        server = self._connection.server
        more = size - self._held
        server.received += more
        self._held = size
        if more > 0 and server.received > server.limits.received_bytes:
            text = "the server holds too many incomplete requests"
            raise Abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

    def _acknowledge(self, size: int) -> None:
        """Lets the caller send as much again."""
        if size:
            self._unacknowledged -= size
            self._connection.acknowledge(self.stream_id, size)
            self._connection.soon()

    def _plain(self, packed: bool, content: bytes) -> bytes:
        if not packed:
            return content
        encoding = next((value for name, value in self._headers if name == b"grpc-encoding"), None)
        return unpack(content, encoding, self._connection.limits.message_bytes)

    def _parsed(self, message: bytes) -> Any:
        try:
            return self._method.deserialize(message)
        except Exception as error:
            raise Abort(grpc.StatusCode.INTERNAL, "the request cannot be parsed") from error

    async def read(self) -> Any:
        """The next message of a stream of requests; `grpc.aio.EOF` after the last."""
        unread = self._unread
        if unread is None:
            raise grpc.aio.UsageError("a unary request cannot be read")
        while not unread:
            if self.complete:
                return grpc.aio.EOF
            if self._reader is not None:
                raise grpc.aio.UsageError("the request is being read already")
            self._reader = self._connection.loop.create_future()
            self._acknowledge(self._unacknowledged)
            try:
                await self._reader
            finally:
                self._reader = None
        packed, content = unread.popleft()
        # Caught up: what there is of the next message may grow too.
        self._acknowledge(len(content) + 5 if unread else self._unacknowledged)
        self._waiting -= len(content) + _MESSAGE_BYTES
        self._hold(self._waiting + len(self._inbox or b""))
        return self._parsed(self._plain(packed, content))

    # Handlers.

    def _start(self, message: bytes) -> None:
        if self._held:
            self._hold(0)
        if self.deadline is not None and self._connection.loop.time() >= self.deadline:
            self.expire()
            return
        request = self._parsed(message)
        if self._method.answers:
            self._run(self._stream(request))
            return
        try:
            answer = self._method.behavior(request, self)
        except Exception as error:
            self._failed(error)
            return
        if hasattr(answer, "__await__"):
            self._run(answer)
        else:
            self._reply(answer)

    def _run(self, answer: Awaitable[Any]) -> None:
        connection = self._connection
        self._task = connection.server.run(answer)
        self._task.add_done_callback(self._ran)
        if self.deadline is not None:
            self._timer = connection.loop.call_at(self.deadline, self.expire)

    async def _stream(self, request: Any) -> Any:
        result = self._method.behavior(request, self)
        if not hasattr(result, "__aiter__"):
            return await result
        async with aclosing(result) as answers:
            async for answer in answers:
                await self.write(answer)

    def _ran(self, task: asyncio.Future[Any]) -> None:
        error = None if task.cancelled() else task.exception()
        if self.ended:
            return
        if task.cancelled():
            self.finish(grpc.StatusCode.CANCELLED, "the handler was cancelled")
        elif error is not None:
            self._failed(error)
        elif self._method.answers:
            self.finish(self._code or _OK, self._details, self._trailing)
        else:
            self._reply(task.result())
        self._connection.soon()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, Abort):
            self.finish(error.code, error.details, error.trailing_metadata)
        elif self._code is not None and self._code is not _OK:
            self.finish(self._code, self._details, self._trailing)
        elif not self.ended:
            log.error("a handler failed", exc_info=error)
            self.finish(grpc.StatusCode.UNKNOWN, "the handler failed", self._trailing)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    # Answers.

    def _reply(self, answer: Any) -> None:
        """Answers a unary call: headers, message and status at once."""
        if self._code is not None and self._code is not _OK:
            self.finish(self._code, self._details, self._trailing)
            return
        try:
            data = self._framed(answer)
        except Abort as error:
            self.finish(error.code, error.details)
            return
        self._connection.answer(
            self.stream_id,
            None if self.started else self._head(),
            data,
            self._status(_OK, self._details, self._trailing),
            self.complete,
        )
        self._code = _OK
        self._settle()

    def _framed(self, answer: Any) -> bytes:
        try:
            message = self._method.serialize(answer)
        except Exception as error:
            log.exception("an answer cannot be serialized")
            text = "the answer cannot be serialized"
            raise Abort(grpc.StatusCode.INTERNAL, text) from error
        limit = self._connection.limits.message_bytes
        if len(message) > limit:
            raise too_large("sent", len(message), limit)
        encoding = None if self._plain_next else self._encoding
        self._plain_next = False
        return frame(message, encoding)

    def _head(self) -> Fields:
        if self._encoding is None:
            return _PLAIN
        return [*_PLAIN, (b"grpc-encoding", self._encoding)]

    def _status(self, code: grpc.StatusCode, details: str, metadata: Metadata) -> Fields:
        try:
            return trailers(code, details, metadata)
        except ValueError as error:
            log.error("trailing metadata cannot be sent: %s", error)
            return trailers(grpc.StatusCode.INTERNAL, str(error), ())

    def _open(self, initial: Fields) -> None:
        self.started = True
        self._connection.open(self.stream_id, [*self._head(), *initial])

    async def write(self, message: Any) -> None:
        """Sends a message; waits while the caller does not take what it has."""
        if self.ended:
            raise grpc.aio.UsageError("the call has ended")
        if self._connection.crowded(self.stream_id):
            raise grpc.aio.UsageError("the call is being written already")
        data = self._framed(message)
        if not self.started:
            self._open([])
        self._connection.send(self.stream_id, data)
        self._connection.soon()
        await self._connection.room(self.stream_id)

    def finish(self, code: grpc.StatusCode, details: str = "", metadata: Metadata = ()) -> None:
        """Tells the caller how the call ended; the second time does nothing."""
        if self.ended:
            return
        status = self._status(code, details, metadata)
        if self.started:
            self._connection.close(self.stream_id, status, self.complete)
        else:
            self._connection.refuse(self.stream_id, [*self._head(), *status], self.complete)
        self._code, self._details = code, details
        self._settle()

    def _settle(self) -> None:
        self.ended = True
        self._connection.forget(self.stream_id)
        if self._timer is not None:
            self._timer.cancel()
        if self._unacknowledged:
            self._acknowledge(self._unacknowledged)
        if self._held:
            self._connection.server.received -= self._held
            self._held = 0
        for callback in self._callbacks:
            callback(self)

    # What handlers may ask and tell besides.

    async def send_initial_metadata(self, initial_metadata: grpc.aio.Metadata | Metadata) -> None:
        """See the base class; raises ValueError for metadata that cannot be sent."""
        if self.started:
            raise grpc.aio.UsageError("the initial metadata are sent already")
        self._open(encode(tuple(initial_metadata)))
        self._connection.soon()

    async def abort(
        self,
        code: grpc.StatusCode,
        details: str = "",
        trailing_metadata: grpc.aio.Metadata | Metadata = (),
    ) -> NoReturn:
        """See the base class."""
        if code is _OK:
            raise ValueError("a call cannot be aborted with OK")
        trailing = tuple(trailing_metadata) or self._trailing
        self.finish(code, details, trailing)
        self._connection.soon()
        raise Abort(code, details, trailing)

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        """See the base class."""
        await self.abort(status.code, status.details, status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: grpc.aio.Metadata | Metadata) -> None:
        """See the base class."""
        self._trailing = tuple(trailing_metadata)

    def invocation_metadata(self) -> Metadata:  # type: ignore[override]  # pairs, as from grpcio's
        """See the base class."""
        return decode(self._headers)

    def set_code(self, code: grpc.StatusCode) -> None:
        """See the base class."""
        self._code = code

    def set_details(self, details: str) -> None:
        """See the base class."""
        self._details = details

    def set_compression(self, compression: grpc.Compression) -> None:
        """See the base class; a caller that did not offer to decompress gets its answers as they are."""
        if self.started:
            raise grpc.aio.UsageError("the compression is settled by the first answer")
        wanted = _COMPRESSIONS[compression]
        offered = next(
            (value for name, value in self._headers if name == b"grpc-accept-encoding"), b""
        )
        if wanted is None or wanted in {part.strip() for part in offered.split(b",")}:
            self._encoding = wanted

    def disable_next_message_compression(self) -> None:
        """See the base class."""
        self._plain_next = True

    def peer(self) -> str:
        """See the base class."""
        return self._connection.peer

    def peer_identities(self) -> Iterable[bytes] | None:
        """None: callers are not authenticated."""
        return None

    def peer_identity_key(self) -> str | None:
        """None: callers are not authenticated."""
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """Empty: callers are not authenticated."""
        return {}

    def time_remaining(self) -> float | None:  # type: ignore[override]  # as its contract says
        """See the base class."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self._connection.loop.time())

    def trailing_metadata(self) -> Metadata:  # type: ignore[override]
        """See the base class."""
        return self._trailing

    def code(self) -> grpc.StatusCode | None:  # type: ignore[override]
        """See the base class."""
        return self._code

    def details(self) -> str:
        """See the base class."""
        return self._details

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See the base class."""
        if self.ended:
            callback(self)
        else:
            self._callbacks = (*self._callbacks, callback)

    def cancelled(self) -> bool:
        """See the base class; true as well when the time was up."""
        return self._cancelled

    def done(self) -> bool:
        """See the base class."""
        return self.ended


class _Requests:
    """The requests of a stream, for handlers that iterate over them."""

    __slots__ = ("_call",)

    def __init__(self, call: Call) -> None:
        self._call = call

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._call.read()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
