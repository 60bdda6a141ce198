"""One HTTP/2 connection: its bytes to and from the protocol engine, and its streams to their calls."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, cast

import grpc
import ngh2

from everloop_inference.rpc.call import Call
from everloop_inference.rpc.messages import ACCEPTED, ENCODINGS
from everloop_inference.rpc.metadata import Fields, timeout
from everloop_inference.rpc.status import trailers

if TYPE_CHECKING:
    from everloop_inference.rpc.server import NativeServer

__all__ = ["Connection"]

log = logging.getLogger(__name__)

_GRPC: Final = b"application/grpc"
_SUBTYPES: Final = (b"application/grpc+", b"application/grpc;")
_REFUSED: Final = [(b":status", b"200"), (b"content-type", _GRPC)]
_DRAINING: Final = b"draining"
_ALIVE: Final = b"alive?\0\0"
_ROUND_TRIP_SECONDS: Final = 1.0
_CLOSE_SECONDS: Final = 5.0
# Events that are worked off before other connections have their turn, and before answers are written.
_SLICE: Final = 48


class Connection(asyncio.Protocol):
    """Answers within `data_received` what can be answered at once; writes once for all of it."""

    def __init__(self, server: NativeServer) -> None:
        """Takes the server whose methods and limits hold."""
        self.server = server
        self.limits = server.limits
        self.loop = server.loop
        self.peer = _peer(None)
        self._session = ngh2.Connection(ngh2.Role.SERVER, server.configuration)
        self._calls: dict[int, Call] = {}
        self._backlog: deque[ngh2.Event] = deque()
        self._rooms: dict[int, asyncio.Future[None]] = {}
        # Streams that we end before their callers do, and whether a body precedes the end.
        self._early: dict[int, bool] = {}
        self._unsent = 0
        self._control = 0
        self._scheduled = False
        self._full = False
        self._reading = True
        self._greeted = False
        self._probed = False
        self._drained: float | None = None
        self._gone = self._parting = False
        self._left: float | None = None
        self._opened = self._heard = self._busy = server.loop.time()
        # Not all that came together are told to go together.
        self._age = server.limits.age_seconds * random.uniform(0.9, 1.1)
        # When the socket, and when the caller, last took something.
        self._moved = self._taken = self._opened
        self._transport: asyncio.Transport

    # What the loop tells it.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the server's preface."""
        self._transport = cast(asyncio.Transport, transport)
        if not self.server.admit(self):
            self._transport.abort()
            return
        self.peer = _peer(transport.get_extra_info("peername"))
        limits = self.limits
        self._transport.set_write_buffer_limits(high=limits.write_bytes)
        self._session.initiate_connection(self.server.settings)
        self._session.set_local_window_size(limits.connection_window)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Works off what came, as far as one connection may at once."""
        self._heard = self.loop.time()
        self._probed = False
        try:
            self._session.receive_data(data)
        except ngh2.NGH2Error as error:
            flood = isinstance(error, ngh2.DenialOfServiceError)
            self._break(
                "flood" if flood else "protocol" if self._greeted else "preface", str(error)
            )
            return
        events = self._session.events()
        if ngh2.StreamReset in map(type, events):
            events = _still_wanted(events)
        self._backlog.extend(events)
        self._work()

    def pause_writing(self) -> None:
        """The socket is full."""
        self._full = True
        self._gate()

    def resume_writing(self) -> None:
        """The socket has room again."""
        self._full = False
        self._gate()
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Cancels what runs."""
        self._left = self._left or self.loop.time()
        self._backlog.clear()
        for call in tuple(self._calls.values()):
            call.cancel()
        self._account(0)
        self.server.lost(self)

    # Events.

    def _work(self) -> None:
        backlog, calls = self._backlog, self._calls
        # Answers wait for the end of the turn.
        self._scheduled = True
        try:
            budget = _SLICE
            while backlog and budget:
                budget -= 1
                event = backlog.popleft()
                if type(event) is ngh2.DataReceived:
                    self._data(event)
                elif type(event) is ngh2.RequestReceived:
                    self._request(event)
                elif type(event) is ngh2.StreamClosed:
                    if call := calls.get(event.stream_id):
                        call.cancel()
                else:
                    self._other(event)
        except Exception:
            log.exception("a connection failed")
            self._break("failure", "an event could not be handled")
            return
        self._flush()
        if backlog:
            self.loop.call_soon(self._work)
        self._gate()

    def _request(self, event: ngh2.RequestReceived) -> None:
        stream_id, headers = event.stream_id, event.headers
        fields = dict(headers)
        self._control = 0
        method = self.server.methods.get(fields.get(b":path", b""))
        kind = fields.get(b"content-type", b"")
        if (
            method is None
            or (kind != _GRPC and not kind.startswith(_SUBTYPES))
            or (fields[b":method"] != b"POST")
            or fields.get(b"grpc-encoding", b"identity") not in _UNDERSTOOD
        ):
            self._reject(stream_id, fields, event.end_stream)
            return
        # As HTTP/2 counts them.
        size = sum(map(len, chain.from_iterable(headers))) + 32 * len(headers)
        if size > self.limits.metadata_bytes:
            text = f"the metadata are larger than {self.limits.metadata_bytes} bytes"
            self._decline(stream_id, grpc.StatusCode.RESOURCE_EXHAUSTED, text, event.end_stream)
            return
        if self.server.full:
            text = "the server is at its limit of concurrent calls"
            self._decline(stream_id, grpc.StatusCode.RESOURCE_EXHAUSTED, text, event.end_stream)
            return
        now = self._busy = self._heard
        call = Call(self, stream_id, method, headers, now)
        if (given := fields.get(b"grpc-timeout")) is not None:
            seconds = timeout(given)
            if seconds is None:
                text = "grpc-timeout is malformed"
                self._decline(stream_id, grpc.StatusCode.INTERNAL, text, event.end_stream)
                return
            call.deadline = now + seconds
        self._calls[stream_id] = call
        self.server.calls += 1
        call.begin()
        if event.end_stream:
            call.receive(b"", True)

    def _data(self, event: ngh2.DataReceived) -> None:
        data = event.data
        call = self._calls.get(event.stream_id)
        if data:
            self._control = 0
        else:
            self._count()
        if call is not None:
            call.receive(data, event.end_stream)
        elif data:
            self.acknowledge(event.stream_id, len(data))

    def _other(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.TrailersReceived):
            if call := self._calls.get(event.stream_id):
                call.receive(b"", True)
        elif isinstance(event, ngh2.PingReceived):
            self._count()
        elif isinstance(event, ngh2.SettingsReceived):
            self._greeted = True
            self._count()
        elif isinstance(event, ngh2.PingAcknowledged):
            if event.opaque_data == _DRAINING:
                self._go()
        elif isinstance(event, ngh2.GoAwayReceived):
            self._parting = True
        elif isinstance(event, ngh2.ConnectionClosed):
            self._closed(event)

    def _count(self) -> None:
        self._control += 1
        if self._control > self.limits.control_frames and self._left is None:
            self._terminate(ngh2.ErrorCode.ENHANCE_YOUR_CALM, "flood")

    def _reject(self, stream_id: int, fields: dict[bytes, bytes], complete: bool) -> None:
        kind = fields.get(b"content-type", b"")
        if fields[b":method"] != b"POST":
            self._turn_away(stream_id, [(b":status", b"405"), (b"allow", b"POST")], complete)
        elif kind != _GRPC and not kind.startswith(_SUBTYPES):
            self._turn_away(stream_id, [(b":status", b"415")], complete)
        elif fields.get(b":path") not in self.server.methods:
            self._decline(stream_id, grpc.StatusCode.UNIMPLEMENTED, "Method not found!", complete)
        else:
            text = "the compression of the request is not supported"
            offer = [(b"grpc-accept-encoding", ACCEPTED)]
            status = trailers(grpc.StatusCode.UNIMPLEMENTED, text, ())
            self.refuse(stream_id, [*_REFUSED, *offer, *status], complete)

    def _turn_away(self, stream_id: int, head: Fields, complete: bool) -> None:
        """Answers what is no gRPC, in words that a person can read."""
        with suppress(ngh2.NGH2Error):
            self._session.send_response(stream_id, [*head, (b"content-type", b"text/plain")])
            self._session.send_data(stream_id, b"gRPC is spoken here\n", end_stream=True)
            if not complete:
                self._early[stream_id] = True

    def _decline(self, stream_id: int, code: grpc.StatusCode, text: str, complete: bool) -> None:
        self.refuse(stream_id, [*_REFUSED, *trailers(code, text, ())], complete)

    # What calls ask of it. A stream may be gone already: then there is nothing to do.

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Lets the caller send so many bytes more."""
        if size and self._left is None:
            self._session.acknowledge_received_data(size, stream_id)

    def answer(
        self, stream_id: int, head: Fields | None, data: bytes, status: Fields, complete: bool
    ) -> None:
        """Sends a whole response, or what is missing after its headers."""
        session = self._session
        try:
            if head is not None:
                session.send_response(stream_id, head)
            session.send_data(stream_id, data)
            session.send_trailers(stream_id, status)
        except ngh2.NGH2Error:
            return
        if not complete:
            self._early[stream_id] = True

    def open(self, stream_id: int, head: Fields) -> None:
        """Sends the headers of a response with a body."""
        with suppress(ngh2.NGH2Error):
            self._session.send_response(stream_id, head)

    def send(self, stream_id: int, data: bytes) -> None:
        """Sends a part of the body."""
        with suppress(ngh2.NGH2Error):
            self._session.send_data(stream_id, data)

    def close(self, stream_id: int, status: Fields, complete: bool) -> None:
        """Ends a response with a body; what its caller has not sent yet is not wanted."""
        with suppress(ngh2.NGH2Error):
            self._session.send_trailers(stream_id, status)
            if not complete:
                self._early[stream_id] = True

    def refuse(self, stream_id: int, head: Fields, complete: bool) -> None:
        """Sends a response without a body; what its caller has not sent yet is not wanted."""
        with suppress(ngh2.NGH2Error):
            self._session.send_response(stream_id, head, end_stream=True)
            if not complete:
                self._early[stream_id] = False

    async def room(self, stream_id: int) -> None:
        """Returns when the caller has taken most of what was sent on the stream."""
        ahead = self.limits.ahead_bytes
        while self._left is None and self._session.queued_body_size(stream_id) > ahead:
            self._rooms[stream_id] = waiter = self.loop.create_future()
            try:
                await waiter
            finally:
                self._rooms.pop(stream_id, None)

    def crowded(self, stream_id: int) -> bool:
        """True while somebody waits for room on the stream."""
        return stream_id in self._rooms

    def forget(self, stream_id: int) -> None:
        """The call has ended."""
        if self._calls.pop(stream_id, None) is not None:
            self.server.calls -= 1
            self._busy = self.loop.time()

    def soon(self) -> None:
        """Writes what there is to write, in this turn of the loop."""
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    # Output.

    def _flush(self) -> None:
        self._scheduled = False
        if self._left is not None:
            return
        session = self._session
        # In pieces where it is much: the socket may be full before the end.
        piece = self.limits.write_bytes
        amount = piece if session.queued_body_size() > piece else None
        try:
            while not self._full:
                if output := session.data_to_send(amount):
                    self._transport.write(output)
                    self._moved = self.loop.time()
                if not output or amount is None:
                    if self._early:
                        self._cut()
                    break
        except ngh2.NGH2Error as error:
            self._break("protocol", str(error))
            return
        closed: ngh2.ConnectionClosed | None = None
        for event in session.events():
            if type(event) is ngh2.StreamClosed:
                if call := self._calls.get(event.stream_id):
                    call.cancel()
            elif type(event) is ngh2.ConnectionClosed:
                closed = event
        unsent = session.queued_body_size()
        if unsent or self._unsent:
            self._account(unsent)
        if self._rooms:
            self._admit()
        if closed is not None:
            self._closed(closed)

    def _cut(self) -> None:
        """Resets what the callers of streams that have ended would go on sending."""
        session = self._session
        for stream_id, body in tuple(self._early.items()):
            try:
                # Nothing queued and a window that is open: the end is on its way.
                open_window = min(
                    session.remote_window_size, session.stream_remote_window_size(stream_id)
                )
                if body and (session.queued_body_size(stream_id) or open_window <= 0):
                    continue
                session.reset_stream(stream_id, ngh2.ErrorCode.NO_ERROR)
            except ngh2.StreamProtocolError:
                pass
            del self._early[stream_id]
        if output := session.data_to_send():
            self._transport.write(output)

    def _account(self, unsent: int) -> None:
        if unsent < self._unsent or not self._unsent:
            self._taken = self.loop.time()
        self.server.unsent += unsent - self._unsent
        self._unsent = unsent

    def _admit(self) -> None:
        for stream_id, waiter in self._rooms.items():
            if (
                self._session.queued_body_size(stream_id) <= self.limits.ahead_bytes
                and not waiter.done()
            ):
                waiter.set_result(None)

    def _gate(self) -> None:
        """Reads only while what came is worked off and what goes is taken."""
        reading = not self._full and not self._backlog
        if reading is not self._reading and self._left is None:
            self._reading = reading
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    # The end.

    def drain(self) -> None:
        """Asks the caller to open no more streams; the connection ends with those that it has."""
        if self._drained is None and self._left is None:
            self._drained = self.loop.time()
            self._session.send_shutdown_notice()
            # A ping overtakes what is not written yet; the answer to one that comes after the notice says that
            # nothing is on its way any more.
            self._flush()
            self._session.ping(_DRAINING)
            self.soon()

    def _go(self) -> None:
        if not self._gone and self._left is None:
            self._gone = True
            self._session.send_goaway()
            self.soon()

    def kill(self) -> None:
        """Closes without waiting for anything."""
        self._transport.abort()

    def end(self) -> None:
        """Ends what runs, and the connection."""
        for call in tuple(self._calls.values()):
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server stops")
        self._flush()
        self._terminate(ngh2.ErrorCode.NO_ERROR, "")

    def _terminate(self, code: ngh2.ErrorCode, reason: str) -> None:
        """Says why, and closes."""
        if self._left is not None:
            return
        with suppress(ngh2.NGH2Error):
            self._session.terminate_connection(code)
            self._transport.write(self._session.data_to_send())
        self._leave(reason)

    def _closed(self, event: ngh2.ConnectionClosed) -> None:
        """The engine has said its last word, or the caller has."""
        self._leave("protocol" if event.error_code and not self._parting else "")

    def _break(self, reason: str, text: str) -> None:
        """Closes without a word: there is no common language."""
        log.info("%s: %s", self.peer, text)
        self._leave(reason)

    def _leave(self, reason: str = "") -> None:
        if self._left is None:
            self._left = self.loop.time()
            self._backlog.clear()
            if reason:
                self.server.closed(reason)
            for call in tuple(self._calls.values()):
                call.cancel()
            self._transport.close()

    def check(self, now: float) -> None:
        """Enforces what depends on time; called every second."""
        limits = self.limits
        if self._left is not None:
            if now - self._left > _CLOSE_SECONDS:
                self._transport.abort()
            return
        self._control = 0
        pressed = self._unsent > 0 and self.server.pressed
        if not self._greeted:
            if now - self._opened > limits.handshake_seconds:
                self._break("preface", "no preface in time")
        elif (self._full and now - self._moved > limits.stall_seconds) or (
            pressed and now - self._taken > limits.pressed_seconds
        ):
            self._leave("stalled")
            self._transport.abort()
        elif (
            self._probed
            and not self._full
            and now - self._heard > limits.keepalive_seconds + limits.keepalive_timeout_seconds
        ):
            self._terminate(ngh2.ErrorCode.NO_ERROR, "silent")
        else:
            self._check_calls(now)
            if now - self._opened > self._age or (
                not self._calls and not self._unsent and now - self._busy > limits.idle_seconds
            ):
                self.drain()
            if self._drained is not None and now - self._drained > _ROUND_TRIP_SECONDS:
                self._go()
            if not self._probed and not self._full and now - self._heard > limits.keepalive_seconds:
                self._probed = True
                self._session.ping(_ALIVE)
                self.soon()

    def _check_calls(self, now: float) -> None:
        for call in tuple(self._calls.values()):
            if (call.deadline is not None and now > call.deadline) or (
                call.waits and now - call.since > self.limits.request_seconds
            ):
                call.expire()


_UNDERSTOOD: Final = frozenset({b"identity", *ENCODINGS})


def _still_wanted(events: list[ngh2.Event]) -> list[ngh2.Event]:
    """Leaves out requests that were cancelled before they were looked at."""
    begun = {event.stream_id for event in events if isinstance(event, ngh2.RequestReceived)}
    gone = begun & {event.stream_id for event in events if isinstance(event, ngh2.StreamReset)}
    return [
        event
        for event in events
        if not (isinstance(event, ngh2.RequestReceived) and event.stream_id in gone)
    ]


def _peer(address: Any) -> str:
    if not address:  # it has hung up already
        return "unknown:"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
