"""Clients that speak HTTP/2 by hand, politely and otherwise."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import ngh2

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
ECHO = "/everloop.test.Probe/Echo"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def block(path: str = ECHO, *more: tuple[str, str], method: str = "POST") -> bytes:
    """A header block of literals that no table remembers."""
    fields = [
        (":method", method),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *more,
    ]
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields)


def text(value: str) -> bytes:
    raw = value.encode()
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, size = len(raw) - 127, bytearray([127])
    while rest >= 128:
        size.append(rest % 128 + 128)
        rest //= 128
    return bytes(size) + bytes([rest]) + raw


def message(content: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(content).to_bytes(4) + content


def call(stream: int, content: bytes = b"hello", path: str = ECHO) -> bytes:
    """A whole unary request."""
    return frame(HEADERS, END_HEADERS, stream, block(path)) + frame(
        DATA, END_STREAM, stream, message(content)
    )


class Raw:
    """A connection whose frames are written by hand."""

    def __init__(self, port: int, greet: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._buffer = b""
        if greet:
            self.send(PREFACE + frame(SETTINGS, 0, 0))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> bool:
        """False once the server has hung up."""
        try:
            self.socket.sendall(data)
        except (ConnectionError, BrokenPipeError):
            return False
        return True

    def frames(self, seconds: float = 10.0) -> Iterator[tuple[int, int, int, bytes]]:
        """What the server sends, until it closes the connection.

        Raises:
            TimeoutError: it neither sent anything nor closed for so long.
        """
        deadline = time.monotonic() + seconds
        while True:
            while len(self._buffer) >= 9:
                size = int.from_bytes(self._buffer[:3])
                if len(self._buffer) < 9 + size:
                    break
                kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
                payload = self._buffer[9 : 9 + size]
                self._buffer = self._buffer[9 + size :]
                yield kind, flags, stream, payload
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                return
            if not data:
                return
            self._buffer += data

    def until(self, *kinds: int) -> tuple[int, int, int, bytes]:
        """The next frame of one of these kinds."""
        for found in self.frames():
            if found[0] in kinds and not (found[0] == SETTINGS and found[1] & ACK):
                return found
        raise AssertionError("the server closed the connection before")

    def goodbye(self) -> int | None:
        """Waits for the end of the connection; the error code of its last GOAWAY, if there was one."""
        code = None
        for kind, _, _, payload in self.frames():
            if kind == GOAWAY:
                code = int.from_bytes(payload[4:8])
        return code


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    data: bytes = b""
    reset: int | None = None
    closed: bool = False

    @property
    def status(self) -> str | None:
        return self.trailers.get("grpc-status", self.headers.get("grpc-status"))

    @property
    def text(self) -> str:
        return self.trailers.get("grpc-message", self.headers.get("grpc-message", ""))


class Polite:
    """A client that keeps to HTTP/2, for what gRPC adds to it."""

    def __init__(self, port: int, settings: dict[int, int] | None = None) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.session = ngh2.Connection(ngh2.Role.CLIENT)
        self.session.initiate_connection(settings)
        self.answers: dict[int, Answer] = {}
        self.goaways: list[tuple[int, int]] = []
        self.flush()

    def __enter__(self) -> Polite:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.session.data_to_send())

    def request(
        self,
        path: str = ECHO,
        body: bytes | None = None,
        *more: tuple[str, str],
        method: str = "POST",
        kind: str = "application/grpc",
        end: bool = True,
    ) -> int:
        fields = [
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("te", "trailers"),
            *([("content-type", kind)] if kind else []),
            *more,
        ]
        encoded = [(name.encode(), value.encode()) for name, value in fields]
        stream = self.session.send_request(encoded, end_stream=body is None and end)
        self.answers[stream] = Answer()
        if body is not None:
            self.session.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def turn(self) -> bool:
        """Takes in what the server sends next; False when it has closed the connection."""
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionError:
            return False
        with contextlib.suppress(ngh2.ConnectionStateError):  # it has said goodbye
            self.session.receive_data(data)
        for event in self.session.events():
            if isinstance(event, ngh2.GoAwayReceived):
                self.goaways.append((event.last_stream_id, event.error_code))
            answer = self.answers.get(getattr(event, "stream_id", 0))
            if answer is None:
                continue
            if isinstance(event, ngh2.ResponseReceived):
                answer.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, ngh2.TrailersReceived):
                answer.trailers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, ngh2.DataReceived):
                answer.data += event.data
            elif isinstance(event, ngh2.StreamReset):
                answer.reset = event.error_code
            elif isinstance(event, ngh2.StreamClosed):
                answer.closed = True
        with contextlib.suppress(OSError, ngh2.ConnectionStateError):
            self.flush()
        return bool(data)

    def answer(self, stream: int) -> Answer:
        """Waits for the end of a stream."""
        found = self.answers[stream]
        while not found.closed and self.turn():
            pass
        return found

    def call(self, *args: object, **kwargs: object) -> Answer:
        return self.answer(self.request(*args, **kwargs))  # type: ignore[arg-type]
