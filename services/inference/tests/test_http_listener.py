"""The HTTP listener on its own: what callers may send, and what they get for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from everloop_inference.http.listener import HttpLimits, HttpServer

Dialogue = Callable[["Caller"], Awaitable[None]]


class Caller:
    """A connection, and the server it goes to."""

    def __init__(self, server: HttpServer, port: int) -> None:
        self.server, self.port = server, port

    async def open(self) -> Caller:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        callers.append(self)
        return self

    async def hang_up(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def send(self, content: bytes) -> None:
        self.writer.write(content)

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(first.split()[1]), headers, body

    async def ends(self) -> bool:
        """Whether the server closes the connection without another word."""
        return await self.reader.read() == b""


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was told; `/break` fails, `/wait` waits until the caller is gone."""
    message = await receive()
    if scope["path"] == "/break":
        raise RuntimeError("broken")
    if scope["path"] == "/wait":
        assert (await receive())["type"] == "http.disconnect"
        gone.append(scope["path"])
    told.append(scope["headers"])
    body = b"%b %b %b" % (scope["method"].encode(), scope["path"].encode(), message["body"][:1000])
    if scope["path"] == "/large":
        body = b"x" * 50_000_000
    status = 413 if len(message["body"]) > 1000 else 200
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
gone: list[str] = []
told: list[list[tuple[bytes, bytes]]] = []
callers: list[Caller] = []


def talk(dialogue: Dialogue, **limits: Any) -> None:
    async def run() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        server = HttpServer(echo, HttpLimits(**{"body_bytes": 1000, **limits}))
        await server.start(listening)
        try:
            caller = await Caller(server, listening.getsockname()[1]).open()
            await asyncio.wait_for(dialogue(caller), 20)
        finally:
            while callers:
                await callers.pop().hang_up()
            await server.stop(1)

    uvloop.run(run())


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %b HTTP/1.1" % path, b"Host: x", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def test_requests_are_answered_one_after_the_other_however_they_are_cut() -> None:
    stream = (
        post(b"/a?b=c", b"one") + post(b"/%C3%A9%2Fd", b"") + b"GET /g HTTP/1.1\r\nHost: x\r\n\r\n"
    )
    stream += b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\ntw\r\n1\r\no\r\n0\r\n\r\n"
    expected = [b"POST /a one", "POST /é%2Fd ".encode(), b"GET /g ", b"POST /c two"]

    async def dialogue(caller: Caller) -> None:
        for step in (len(stream), 1, 7):
            for start in range(0, len(stream), step):
                caller.send(stream[start : start + step])
                await asyncio.sleep(0)
            assert [(await caller.answer())[2] for _ in expected] == expected

    talk(dialogue)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\x16\x03\x01 this is TLS", 400),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", 400),
        (post(b"/", b"")[:-2] + b"Content-Length: 5\r\n\r\n", 400),
        (b"GET /break HTTP/1.1\r\nHost: x\r\n\r\n", 500),
        (post(b"/", b"x" * 1001), 413),
        (CHUNKED + b"3e9\r\n" + b"x" * 1001, 413),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n", 400),
        (CHUNKED.replace(b"chunked", b"gzip, chunked") + b"0\r\n\r\n", 501),
        (CHUNKED.replace(b"chunked", b"gzip\r\nTransfer-Encoding: chunked"), 501),
        (b"GET / HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 200),
    ],
)
def test_what_cannot_go_on_is_answered_and_closed(content: bytes, status: int) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b"first") + content)
        assert (await caller.answer())[2] == b"POST / first"
        found, headers, _ = await caller.answer()
        assert (found, headers["connection"]) == (status, "close")
        assert await caller.ends()

    talk(dialogue)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nX: ", b"GET /"])
def test_a_head_has_an_end(start: bytes) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(start + b"y" * 1000)
        status, headers, _ = await caller.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert await caller.ends()

    talk(dialogue, head_bytes=1000)


def test_a_body_costs_what_it_holds_however_it_is_cut() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(CHUNKED)
        tracemalloc.start()
        try:
            for _ in range(200):
                caller.send(b"1\r\nx\r\n" * 1000)
                await caller.writer.drain()
            (connection,) = caller.server.connections
            while connection._size < 200_000:
                await asyncio.sleep(0)
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert held < 1_000_000
        caller.send(b"0\r\n\r\n")
        assert (await caller.answer())[2].startswith(b"POST / xxx")

    talk(dialogue, body_bytes=1_000_000)


async def emptied(server: HttpServer, received: int) -> None:
    async with asyncio.timeout(10):
        while server.received != received:
            await asyncio.sleep(0.01)


def test_bodies_of_all_connections_have_a_bound() -> None:
    async def dialogue(caller: Caller) -> None:
        server = caller.server
        caller.send(post(b"/wait", b"x" * 600))  # is being answered
        half = await Caller(server, caller.port).open()
        half.send(post(b"/", b"x" * 600)[:-200])  # is being sent
        while server.received < 1000:
            await asyncio.sleep(0)
        other = await Caller(server, caller.port).open()
        other.send(post(b"/", b"x" * 200))
        status, headers, _ = await other.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        small = await Caller(server, caller.port).open()
        small.send(post(b"/", b"x" * 100))
        assert (await small.answer())[0] == 200
        # What is given up and what is answered makes room.
        await caller.hang_up()
        await emptied(server, 400)
        half.send(b"x" * 200)
        assert (await half.answer())[0] == 200
        await emptied(server, 0)
        small.send(post(b"/", b"x" * 900))
        assert (await small.answer())[0] == 200

    talk(dialogue, received_bytes=1000, connections=10)


def test_trailers_mean_nothing() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(CHUNKED + b"4\r\nbody\r\n0\r\ngrpc-timeout: 1n\r\nExpect: 100-continue\r\n\r\n")
        assert (await caller.answer())[2] == b"POST / body"
        assert told[-1] == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]

    talk(dialogue)


@pytest.mark.parametrize("piece", [b"0\r\n" + b"x: y\r\n" * 200, b"1;" + b"z" * 1000])
def test_what_surrounds_a_body_has_an_end(piece: bytes) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(CHUNKED + b"4\r\nbody\r\n")
        (connection,) = caller.server.connections
        while not connection._size:
            await asyncio.sleep(0)
        caller.send(piece)
        status, headers, _ = await caller.answer()
        assert (status, headers["connection"]) == (431, "close")
        assert await caller.ends()

    talk(dialogue, head_bytes=1000)


def test_trailers_do_not_keep_a_request_alive() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(CHUNKED + b"0\r\n")
        answer = asyncio.ensure_future(caller.answer())
        while not answer.done():
            caller.send(b"x: y\r\n")
            await asyncio.wait([answer], timeout=0.1)
        assert answer.result()[0] == 408

    talk(dialogue, request_seconds=0.3)


def test_a_head_request_gets_no_body() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(b"HEAD /h HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await caller.reader.readuntil(b"\r\n\r\n")
        assert b"content-length: 8" in head
        caller.send(b"GET /g HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await caller.answer())[2] == b"GET /g "

    talk(dialogue)


def test_a_caller_that_asks_whether_to_go_on_is_told_so() -> None:
    async def dialogue(caller: Caller) -> None:
        whole = post(b"/", b"body", b"Expect: 100-continue")
        caller.send(whole[:-4])
        assert await caller.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.send(whole[-4:])
        assert (await caller.answer())[2] == b"POST / body"

    talk(dialogue)


def test_one_connection_too_many_is_told_to_come_back() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b"in"))
        assert (await caller.answer())[0] == 200
        other = await Caller(caller.server, caller.port).open()
        other.send(post(b"/", b"out"))
        status, headers, _ = await other.answer()
        assert (status, headers["retry-after"]) == (503, "1")
        assert await other.ends()

    talk(dialogue, connections=1)


def test_a_body_that_is_too_large_is_not_asked_for() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b"x" * 1001, b"Expect: 100-continue")[:-1001])
        assert (await caller.answer())[0] == 413
        assert await caller.ends()

    talk(dialogue)


def test_connections_that_say_nothing_are_too_many_as_well() -> None:
    async def dialogue(caller: Caller) -> None:
        idle = [await Caller(caller.server, caller.port).open() for _ in range(5)]
        for one in idle:
            assert (await one.answer())[0] == 503
            assert await one.ends()
        assert len(caller.server.connections) == 1
        caller.send(post(b"/", b"in"))
        assert (await caller.answer())[0] == 200
        await caller.hang_up()
        async with asyncio.timeout(10):
            while caller.server.connections:
                await asyncio.sleep(0.01)
        other = await Caller(caller.server, caller.port).open()
        other.send(post(b"/", b"in"))
        assert (await other.answer())[0] == 200

    talk(dialogue, connections=1)


SENT = b"x" * 64_000_000


def sent_before_reading(port: int) -> int:
    """The status of a request whose caller reads after it has sent everything."""
    with contextlib.closing(
        http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    ) as connection:
        connection.request("POST", "/", SENT)
        return connection.getresponse().status


@pytest.mark.parametrize(("limits", "status"), [({"connections": 1}, 503), ({}, 413)])
def test_who_is_refused_while_it_sends_can_read_why(limits: dict[str, int], status: int) -> None:
    async def dialogue(caller: Caller) -> None:
        assert await asyncio.to_thread(sent_before_reading, caller.port) == status

    talk(dialogue, body_bytes=len(SENT) // 2, **limits)


@pytest.mark.parametrize("pieces", [0, 4001])
def test_who_is_refused_cannot_stay(pieces: int) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b"x" * 1001))
        assert (await caller.answer())[0] == 413
        with contextlib.suppress(ConnectionError):
            caller.send(b"z" * pieces)
        async with asyncio.timeout(10):
            while caller.server.connections:
                await asyncio.sleep(0.01)

    talk(dialogue, linger_seconds=60.0 if pieces else 0.1)


@pytest.mark.parametrize("content", [b"POST / HT", post(b"/", b"body")[:-2]])
def test_a_request_that_does_not_come_is_not_waited_for(content: bytes) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(content)
        assert (await caller.answer())[0] == 408
        assert await caller.ends()

    talk(dialogue, request_seconds=0.1)


def test_an_idle_connection_is_closed() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b""))
        await caller.answer()
        assert await caller.ends()

    talk(dialogue, idle_seconds=0.1)


def test_a_caller_that_takes_no_answers_is_not_read() -> None:
    async def dialogue(caller: Caller) -> None:
        request = post(b"/", b"x" * 900)
        (connection,) = caller.server.connections
        sent = 0
        while not connection._paused:  # until the sockets of both sides are full
            caller.send(request * 100)
            sent += 100
            await asyncio.sleep(0)
        for _ in range(sent):
            assert (await caller.answer())[0] == 200

    talk(dialogue)


def slow(port: int, ended: threading.Event) -> None:
    """Takes an answer bit by bit, for longer than a caller may take nothing of it, and then no more."""
    with socket.socket() as caller:
        caller.connect(("127.0.0.1", port))
        caller.sendall(post(b"/large", b""))
        began = time.monotonic()
        while time.monotonic() < began + 4.0:
            assert caller.recv(100_000)
            time.sleep(0.02)
        assert ended.wait(10)


def test_a_caller_that_takes_nothing_is_cut_off_and_a_slow_one_is_not() -> None:
    async def dialogue(caller: Caller) -> None:
        await caller.hang_up()
        ended = threading.Event()
        reading = asyncio.ensure_future(asyncio.to_thread(slow, caller.port, ended))
        began = time.monotonic()
        async with asyncio.timeout(15):
            while not caller.server.connections:
                await asyncio.sleep(0.01)
            while caller.server.connections:
                await asyncio.sleep(0.01)
        assert time.monotonic() - began > 4.0
        ended.set()
        await reading

    talk(dialogue, stall_seconds=1.5)


def test_an_application_that_waits_is_told_that_its_caller_is_gone() -> None:
    async def dialogue(caller: Caller) -> None:
        gone.clear()
        caller.send(post(b"/wait", b""))
        await asyncio.sleep(0.05)
        await caller.hang_up()
        async with asyncio.timeout(10):
            while not gone:
                await asyncio.sleep(0.01)

    talk(dialogue)


def test_stopping_answers_what_was_asked_and_closes_what_is_idle() -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(post(b"/", b"body")[:-1])
        idle = await Caller(caller.server, caller.port).open()
        idle.send(post(b"/", b""))
        await idle.answer()
        stopping = asyncio.ensure_future(caller.server.stop(10))
        assert await idle.ends()
        assert not stopping.done()
        caller.send(b"y")
        status, _, body = await caller.answer()
        assert (status, body) == (200, b"POST / body"[:-1] + b"y")
        assert await caller.ends()
        await stopping
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", caller.port)

    talk(dialogue)


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_whatever_comes_the_next_caller_is_answered(content: bytes) -> None:
    async def dialogue(caller: Caller) -> None:
        caller.send(content)
        other = await Caller(caller.server, caller.port).open()
        other.send(post(b"/", b"well"))
        assert (await other.answer())[2] == b"POST / well"

    talk(dialogue)
