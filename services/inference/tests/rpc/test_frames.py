"""Callers that are broken, slow or hostile: the server closes what it must and goes on answering the others.

What both servers must survive is tried on both. What exactly is answered, and that nothing broken is borne, is asked of
the native one: grpcio is lenient with much of it.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import select
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from services.inference.tests.rpc.conftest import SERVICE, Served
from services.inference.tests.rpc.wire import (
    ACK,
    CONTINUATION,
    DATA,
    ECHO,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Polite,
    Raw,
    block,
    call,
    frame,
    message,
    text,
)

MIB = 1024 * 1024
native_only = pytest.mark.parametrize("kind", ["native"])
NO_ERROR, PROTOCOL_ERROR, _, FLOW_CONTROL, _, STREAM_CLOSED, FRAME_SIZE = range(7)
REFUSED_STREAM, COMPRESSION = 7, 9


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


@pytest.fixture
def memory(served: Served, kind: str) -> Any:
    """Fails if the process has grown by more than a caller may cost it; what grpcio keeps is not in our hands."""
    assert served.answers()
    before = psutil.Process().memory_info().rss
    yield
    grown = psutil.Process().memory_info().rss - before
    assert grown < (128 if kind == "native" else 512) * MIB, f"grown by {grown / MIB:.0f} MiB"


# Broken beyond HTTP/2.

START = PREFACE + frame(SETTINGS, 0, 0)
BROKEN = {
    "noise": random.Random(1).randbytes(1000),
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
    "TLS": bytes.fromhex("16030100c5010000c10303") + bytes(200),
    "almost a preface": PREFACE[:-2] + b"XX" + frame(SETTINGS, 0, 0),
    "no settings": PREFACE + frame(PING, 0, 0, bytes(8)),
    "frame beyond the limit": START + (17 * MIB).to_bytes(4)[1:] + bytes(6) + bytes(70_000),
    "settings on a stream": START + frame(SETTINGS, 0, 1),
    "settings of five bytes": START + frame(SETTINGS, 0, 0, bytes(5)),
    "ping of seven bytes": START + frame(PING, 0, 0, bytes(7)),
    "ping on a stream": START + frame(PING, 0, 1, bytes(8)),
    "data on stream 0": START + frame(DATA, 0, 0, b"x"),
    "data on an idle stream": START + frame(DATA, 0, 1, b"x"),
    "reset of an idle stream": START + frame(RST_STREAM, 0, 1, bytes(4)),
    "reset of three bytes": START + call(1) + frame(RST_STREAM, 0, 1, bytes(3)),
    "headers on an even stream": START + frame(HEADERS, END_HEADERS, 2, block()),
    "continuation of nothing": START + frame(CONTINUATION, END_HEADERS, 1, block()),
    "headers cut by another frame": START
    + frame(HEADERS, 0, 1, block()[:10])
    + frame(PING, 0, 0, bytes(8)),
    "garbled header block": START + frame(HEADERS, END_HEADERS, 1, b"\xff" * 40),
    "index of nothing": START + frame(HEADERS, END_HEADERS, 1, b"\xfe"),
    "padding longer than the frame": START
    + frame(HEADERS, END_HEADERS, 1, block())
    + frame(DATA, PADDED, 1, b"\xffabc"),
    "push by a client": START + call(1) + frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + block()),
    "window of the connection overflown": START
    + frame(WINDOW_UPDATE, 0, 0, (2**31 - 1).to_bytes(4)) * 2,
    "window update of zero": START + frame(WINDOW_UPDATE, 0, 0, bytes(4)),
    "initial window too large": START + frame(SETTINGS, 0, 0, b"\0\4" + (2**31).to_bytes(4)),
    "window of a stream overflown": START
    + frame(HEADERS, END_HEADERS, 1, block())
    + frame(WINDOW_UPDATE, 0, 1, (2**31 - 1).to_bytes(4)) * 2,
}


def wait_for_the_end(served: Served, client: Raw) -> None:
    if served.kind == "native":
        client.goodbye()


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_connection_is_closed(served: Served, name: str) -> None:
    with Raw(served.port, greet=False) as client:
        client.send(BROKEN[name])
        wait_for_the_end(served, client)
        assert served.answers()


@native_only
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("frame beyond the limit", FRAME_SIZE),
        ("settings of five bytes", FRAME_SIZE),
        ("data on an idle stream", PROTOCOL_ERROR),
        ("garbled header block", COMPRESSION),
        ("window of the connection overflown", FLOW_CONTROL),
        ("initial window too large", FLOW_CONTROL),
        ("window of a stream overflown", FLOW_CONTROL),
    ],
)
def test_the_last_frame_says_why(served: Served, name: str, code: int) -> None:
    with Raw(served.port, greet=False) as client:
        client.send(BROKEN[name])
        assert client.goodbye() == code
    assert served.closed == ["protocol"]


# Broken streams: the connection goes on.


@native_only
def test_a_broken_stream_is_reset_and_its_connection_goes_on(served: Served) -> None:
    with Raw(served.port) as client:
        for stream, broken in enumerate(
            [
                frame(HEADERS, END_HEADERS, 0, b"\0" + text("te") + text("trailers")),
                frame(HEADERS, END_HEADERS, 0, block(ECHO, ("Upper", "case"))),
                frame(HEADERS, END_HEADERS, 0, block(ECHO, ("connection", "close"))),
                frame(HEADERS, END_HEADERS, 0, block(ECHO, ("content-length", "3")))
                + frame(DATA, END_STREAM, 0, b"four"),
            ]
        ):
            number = 2 * stream + 1
            client.send(on_stream(broken, number))
            kind, _, reset, _ = client.until(RST_STREAM, GOAWAY)
            assert (kind, reset) == (RST_STREAM, number), stream
        client.send(call(99))
        assert client.until(DATA)[3] == message(b"hello")


def on_stream(frames: bytes, stream: int) -> bytes:
    """The frames, moved to another stream."""
    moved, position = b"", 0
    while position < len(frames):
        end = position + 9 + int.from_bytes(frames[position : position + 3])
        moved += frames[position : position + 5] + stream.to_bytes(4) + frames[position + 9 : end]
        position = end
    return moved


def test_data_after_the_end_of_a_stream_harms_only_its_sender(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(call(1))
        client.until(DATA)
        client.send(frame(DATA, 0, 1, b"more") * 3 + frame(HEADERS, END_HEADERS, 1, block()))
        client.socket.shutdown(1)
        client.goodbye()
    assert served.answers()


def test_a_half_closed_connection_is_let_go(served: Served) -> None:
    for sent in (b"", PREFACE[:10], START, START + call(1)[:30], START + call(1)):
        with Raw(served.port, greet=False) as client:
            client.send(sent)
            client.socket.shutdown(1)
            client.goodbye()
    assert served.answers()


def test_unknown_frames_settings_and_flags_are_ignored(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(
            frame(0x77, 0xFF, 0, b"unknown")
            + frame(SETTINGS, 0, 0, b"\xff\xff" + bytes(4))
            + frame(PRIORITY, 0, 3, bytes(4) + b"\1")
            + call(1)
        )
        assert client.until(DATA)[3] == message(b"hello")
        client.send(frame(PING, 0, 0, b"12345678"))
        while not (answer := client.until(PING))[1] & ACK:
            pass  # grpcio's own, with which it measures the way
        assert answer[3] == b"12345678"


def test_a_request_may_come_byte_by_byte(served: Served) -> None:
    with Raw(served.port, greet=False) as client:
        for byte in START + call(1):
            client.send(bytes([byte]))
        assert client.until(DATA)[3] == message(b"hello")


@native_only
def test_a_message_may_be_cut_anywhere(served: Served) -> None:
    with Raw(served.port) as client:
        for stream, cut in enumerate(range(1, 12)):
            number, whole = 2 * stream + 1, message(b"123456789")
            client.send(
                frame(HEADERS, END_HEADERS, number, block())
                + frame(DATA, 0, number, whole[:cut])
                + frame(DATA, 0, number)
                + frame(DATA, END_STREAM, number, whole[cut:])
            )
            assert client.until(DATA, RST_STREAM)[3] == whole, cut


# gRPC on sound HTTP/2, broken.


GZIP, DEFLATE = (("grpc-encoding", "gzip"),), (("grpc-encoding", "deflate"),)
PACKED = gzip.compress(b"a", mtime=0)
BOMB = bytes(200 * MIB)
BROKEN_CALLS: dict[str, tuple[str, bytes, tuple[tuple[str, str], ...], str]] = {
    "nothing": ("Echo", b"", (), "13"),
    "half a prefix": ("Echo", b"\0\0\0", (), "13"),
    "half a message": ("Echo", b"\0\0\0\0\5abc", (), "13"),
    "half a message in a stream": ("Total", b"\0\0\0\0\5abc", (), "13"),
    "half a message for a stream": ("Count", b"\0\0\0\0\5abc", (), "13"),
    "two messages": ("Echo", message(b"a") + message(b"b"), (), "13"),
    "more than a message": ("Echo", message(b"a") + b"x", (), "13"),
    "unknown flag": ("Echo", b"\2\0\0\0\1a", (), "13"),
    "unknown flag in a stream": ("Total", b"\2\0\0\0\1a", (), "13"),
    "compressed by nothing": ("Echo", message(b"a", 1), (), "13"),
    "not compressed": ("Echo", message(b"a", 1), GZIP, "13"),
    "compression cut off": ("Echo", message(PACKED[:-4], 1), GZIP, "13"),
    "more than compressed": ("Echo", message(PACKED + b"x", 1), GZIP, "13"),
    "unknown compression": ("Echo", message(b"a"), (("grpc-encoding", "snappy"),), "12"),
    "timeout without a unit": ("Echo", message(b"a"), (("grpc-timeout", "5"),), "13"),
    "timeout of nine digits": ("Echo", message(b"a"), (("grpc-timeout", "123456789S"),), "13"),
    "no time": ("Echo", message(b"a"), (("grpc-timeout", "0n"),), "4"),
    "no time for a coroutine": ("Wait", message(b"a"), (("grpc-timeout", "0n"),), "4"),
    "little time": ("Wait", message(b"a"), (("grpc-timeout", "20m"),), "4"),
    "endless message": ("Echo", b"\0\xff\xff\xff\xff", (), "8"),
    "endless message in a stream": ("Total", b"\0\xff\xff\xff\xff", (), "8"),
    "bomb": ("Echo", message(gzip.compress(BOMB, mtime=0), 1), GZIP, "8"),
    "bomb in a stream": ("Total", message(zlib.compress(BOMB), 1), DEFLATE, "8"),
}


@native_only
@pytest.mark.parametrize("broken", BROKEN_CALLS)
def test_a_broken_call_ends_with_a_status(served: Served, broken: str) -> None:
    name, body, more, status = BROKEN_CALLS[broken]
    with Polite(served.port) as client:
        answer = client.call(path(name), body, *more)
        assert (answer.headers[":status"], answer.status) == ("200", status), answer
        assert client.call(body=message(b"next")).data == message(b"next")


@native_only
def test_a_deadline_is_kept_to_the_moment(served: Served) -> None:
    began = time.monotonic()
    with Polite(served.port) as client:
        for _ in range(10):
            answer = client.call(path("Wait"), message(b"a"), ("grpc-timeout", "20m"))
            assert (answer.status, answer.text) == ("4", "Deadline Exceeded")
    # What looks after the time of everything else comes by once a second.
    assert time.monotonic() - began < 8


@native_only
def test_what_is_no_grpc_gets_an_http_status(served: Served) -> None:
    with Polite(served.port) as client:
        for kind in ("text/plain", "", "application/grpcx", "application/json"):
            answer = client.call(body=message(b"a"), kind=kind)
            assert (answer.headers[":status"], answer.status) == ("415", None)
        for method in ("GET", "PUT", "OPTIONS"):
            answer = client.call(body=message(b"a"), method=method)
            assert (answer.headers[":status"], answer.headers["allow"]) == ("405", "POST")
        for kind in ("application/grpc+proto", "application/grpc;charset=utf-8"):
            assert client.call(body=message(b"a"), kind=kind).status == "0"


@native_only
def test_a_connect_request_is_turned_away(served: Served) -> None:
    with Raw(served.port) as client:
        fields = b"".join(
            b"\0" + text(n) + text(v) for n, v in ((":method", "CONNECT"), (":authority", "x:1"))
        )
        client.send(frame(HEADERS, END_HEADERS, 1, fields) + call(3))
        assert client.until(DATA)[3] == b"gRPC is spoken here\n"
        assert client.until(DATA)[3] == message(b"hello")


@native_only
@pytest.mark.parametrize(
    ("name", "body", "status"),
    [("Nothing", b"", "12"), ("Echo", message(b"a") + message(b"b"), "13")],
)
def test_an_answer_before_the_end_of_the_request_stops_it(
    served: Served, name: str, body: bytes, status: str
) -> None:
    with Polite(served.port) as client:
        stream = client.request(path(name), body or None, end=False)
        answer = client.answer(stream)
        assert (answer.status, answer.reset) == (status, NO_ERROR)
        assert client.call(body=message(b"next")).status == "0"


@native_only
@pytest.mark.parametrize("name", ["Nothing", "Late"])
def test_what_nobody_reads_does_not_use_up_the_window(
    serve: Callable[..., Served], until: Callable[..., None], name: str
) -> None:
    served = serve(connection_window=65_535)
    with Polite(served.port) as client:
        for number in range(10):
            stream = client.request(path(name), message(bytes(30_000)), end=False)
            if name == "Nothing":
                assert client.answer(stream).status == "12"
            else:
                until(lambda number=number: served.probe.started > number)
                client.session.reset_stream(stream)
                client.flush()
        large = message(bytes(200_000))
        assert client.call(body=large).data == large


@native_only
def test_trailers_of_a_request_end_it(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(
            frame(HEADERS, END_HEADERS, 1, block())
            + frame(DATA, 0, 1, message(b"hello"))
            + frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0" + text("x-end") + text("1"))
        )
        assert client.until(DATA)[3] == message(b"hello")


@native_only
@pytest.mark.parametrize("window", [0, 5, 12])
def test_an_end_is_not_cut_off_by_a_closed_window(
    served: Served, until: Callable[..., None], window: int
) -> None:
    """The answer to a request that goes on is complete, though its window opens late."""
    with Raw(served.port) as client:
        client.send(frame(SETTINGS, 0, 0, b"\0\4" + window.to_bytes(4)))
        client.send(frame(HEADERS, END_HEADERS, 1, block(path("Chat"))))
        client.send(frame(DATA, 0, 1, message(b"stop me") + message(b"stop")))
        until(lambda: served.probe.seen == [b"stop me", b"stop"])
        answer = b""
        for number in range(20):
            client.send(frame(PING, 0, 0, bytes([number] * 8)))
            kind = None
            while kind != PING:
                kind, flags, _, payload = client.until(DATA, HEADERS, RST_STREAM, PING)
                assert kind != RST_STREAM
                assert kind != HEADERS or not flags & END_STREAM
                answer += payload if kind == DATA else b""
        assert answer == message(b"stop me")[:window]
        client.send(frame(WINDOW_UPDATE, 0, 1, (1000).to_bytes(4)))
        while (found := client.until(DATA, HEADERS, RST_STREAM))[0] != RST_STREAM:
            answer += found[3] if found[0] == DATA else b""
            last = found
        assert answer == message(b"stop me")
        assert last[0] == HEADERS
        assert last[1] & END_STREAM
        assert found[3] == NO_ERROR.to_bytes(4)


# Floods. Whether the server closes the connection or bears it: others are answered, and memory is bounded.


def flood(client: Raw, unit: bytes, total: int, read: bool) -> None:
    """Sends a unit over and over, until the server hangs up or reads no more."""
    chunk = unit * max(1, 65536 // len(unit))
    client.socket.settimeout(3)
    for _ in range(0, total, len(chunk)):
        try:
            if not client.send(chunk):
                return
        except TimeoutError:
            return
        while read and (ready := select.select([client.socket], [], [], 0)[0]):
            try:
                if not ready[0].recv(1 << 20):
                    return
            except ConnectionError:
                return


FLOODS = {
    "ping": frame(PING, 0, 0, bytes(8)),
    "settings": frame(SETTINGS, 0, 0, b"\0\4" + (65535).to_bytes(4)),
    "empty settings": frame(SETTINGS, 0, 0),
    "settings acknowledgements": frame(SETTINGS, ACK, 0),
    "priority": frame(PRIORITY, 0, 3, bytes(4) + b"\1"),
    "window updates": frame(WINDOW_UPDATE, 0, 0, (1).to_bytes(4)),
    "unknown frames": frame(0x99, 0, 0, b"x" * 100),
}


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_frames_is_survived(served: Served, name: str, read: bool) -> None:
    with Raw(served.port) as client:
        flood(client, FLOODS[name], 2 * MIB, read)
        if name in {"ping", "settings", "empty settings"}:
            wait_for_the_end(served, client)
        assert served.answers()


@native_only
@pytest.mark.parametrize("name", ["ping", "empty settings"])
def test_a_patient_flood_is_ended_too(served: Served, name: str) -> None:
    """Never more at once than the engine minds, and every answer is taken."""
    with Raw(served.port) as client:
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                client.socket.sendall(FLOODS[name] * 200)
                client.socket.recv(1 << 20)
        client.goodbye()
    assert served.closed == ["flood"]


@pytest.mark.usefixtures("memory")
def test_a_flood_of_empty_data_is_survived(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, block(path("Total"))))
        flood(client, frame(DATA, 0, 1), 2 * MIB, read=True)
        wait_for_the_end(served, client)
        assert served.answers()


@pytest.mark.usefixtures("memory")
def test_a_flood_of_continuations_is_survived(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(frame(HEADERS, 0, 1, block()))
        part = b"\0" + text("x-more") + text("y" * 1000)
        flood(client, frame(CONTINUATION, 0, 1, part), 4 * MIB, read=False)
        wait_for_the_end(served, client)
    with Raw(served.port) as client:
        client.send(frame(HEADERS, 0, 1, block()))
        flood(client, frame(CONTINUATION, 0, 1), 2 * MIB, read=False)
    assert served.answers()


@pytest.mark.usefixtures("memory")
def test_a_bomb_of_headers_is_survived(served: Served) -> None:
    """One field of 4 KB goes into the table of the server; then a byte each stands for all of it."""
    with Raw(served.port) as client:
        large = b"\x40" + text("x-large") + text("y" * 3900)
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, block() + large))
        for stream in range(3, 400, 2):
            bomb = block() + b"\xbe" * 16_000
            if not client.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, bomb)):
                break
    assert served.answers()


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ["Echo", "Wait"])
def test_a_rapid_reset_is_survived(served: Served, name: str) -> None:
    with Raw(served.port) as client:
        stream, alive = 1, True
        while alive and stream < 100_000:
            burst = b""
            for _ in range(200):
                burst += call(stream, path=path(name)) + frame(RST_STREAM, 0, stream, bytes(4))
                stream += 2
            alive = client.send(burst)
        if served.kind == "native":
            assert client.goodbye() is None or not alive or served.closed
            # What was cancelled before it was looked at did not run.
            assert served.probe.started < 100
        assert served.answers()


@native_only
@pytest.mark.usefixtures("memory")
def test_requests_beyond_the_streams_are_refused(
    serve: Callable[..., Served], served: Served
) -> None:
    narrow = serve(streams=10)
    with Raw(narrow.port) as client:
        for number in range(200):
            client.send(call(2 * number + 1, path=path("Wait")))
        kind, _, stream, payload = client.until(RST_STREAM, GOAWAY)
        assert (kind, int.from_bytes(payload[-4:])) == (RST_STREAM, REFUSED_STREAM), stream
    assert narrow.answers()
    assert narrow.probe.started <= 11


@pytest.mark.usefixtures("memory")
def test_a_caller_that_ignores_its_window_is_stopped(served: Served) -> None:
    with Raw(served.port) as client:
        client.send(frame(HEADERS, END_HEADERS, 1, block(path("Late"))))
        flood(client, frame(DATA, 0, 1, bytes(16_000)), 16 * MIB, read=True)
        wait_for_the_end(served, client)
        assert served.answers()


@pytest.mark.usefixtures("memory")
def test_a_caller_that_takes_no_answers_is_not_answered_for_ever(served: Served) -> None:
    with Raw(served.port) as client:
        stream = 1
        client.send(frame(SETTINGS, 0, 0, b"\0\4" + (2**31 - 1).to_bytes(4)))
        client.send(frame(WINDOW_UPDATE, 0, 0, (2**31 - 1 - 65535).to_bytes(4)))
        client.socket.settimeout(1)
        try:
            while stream < 20_000 and client.send(
                call(stream, json.dumps([40, 64 * 1024]).encode(), path("Count"))
            ):
                stream += 2
        except TimeoutError:
            pass
        assert served.answers()


def test_random_frames_are_survived(served: Served) -> None:
    rng = random.Random(7)
    for _ in range(150):
        with Raw(served.port) as client:
            noise = b""
            for _ in range(rng.randint(1, 30)):
                kind = rng.choice([*range(10), 0x77])
                payload = rng.choice(
                    [
                        b"",
                        bytes(4),
                        bytes(8),
                        block(),
                        rng.randbytes(rng.randint(0, 60)),
                        b"\0\0\0\0\0",
                    ]
                )
                stream = rng.choice([0, 1, 1, 3, 5, 2, 2**31 - 1])
                noise += frame(kind, rng.choice([0, 1, 4, 5, 8, 32, 255]), stream, payload)
            client.send(noise)
            client.socket.shutdown(1)
            wait_for_the_end(served, client)
    assert served.answers()


def test_damaged_sessions_are_survived(served: Served) -> None:
    if served.kind == "grpcio":
        pytest.skip("grpcio's asyncio server ends at a path that is not UTF-8")
    rng = random.Random(8)
    session = START + b"".join(call(number, b"x" * number) for number in range(1, 20, 2))
    for _ in range(300):
        damaged = bytearray(session)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(PREFACE), len(damaged))] = rng.randrange(256)
        with Raw(served.port, greet=False) as client:
            client.send(bytes(damaged))
            client.socket.shutdown(1)
            wait_for_the_end(served, client)
    assert served.answers()


# Time.


def test_a_connection_without_a_preface_is_closed(serve: Callable[..., Served]) -> None:
    served = serve(handshake_seconds=0.3)
    for sent in (b"", PREFACE[:10]):
        with Raw(served.port, greet=False) as client:
            client.send(sent)
            client.goodbye()
    if served.kind == "native":
        assert served.closed == ["preface"] * 2


@native_only
def test_a_request_that_does_not_come_ends(serve: Callable[..., Served]) -> None:
    served = serve(request_seconds=0.3)
    with Polite(served.port) as client:
        never = client.request(body=b"\0\0\0\0\5ab", end=False)
        answer = client.answer(never)
        assert (answer.status, answer.reset) == ("4", NO_ERROR)
        # A stream of requests takes the time that it needs.
        stream = client.request(path("Total"), message(b"a"), end=False)
        assert client.answer(client.request(body=b"\0\0\0\0\5ab", end=False)).status == "4"
        client.session.end_stream(stream)
        client.flush()
        assert client.answer(stream).data == message(b"[1, 1]")


@native_only
def test_incomplete_requests_share_a_bound(serve: Callable[..., Served]) -> None:
    served = serve(received_bytes=200_000)
    with Polite(served.port) as first, Polite(served.port) as second:
        part = b"\0\0\2\0\0" + bytes(60_000)
        kept = [first.request(body=part, end=False) for _ in range(3)]
        assert first.call(body=message(b"settle")).status == "0"
        refused = second.answer(second.request(body=part, end=False))
        assert refused.status == "8", refused
        for stream in kept:
            first.session.reset_stream(stream)
        first.flush()
        assert first.call(body=message(b"settle")).status == "0"
        whole = message(bytes(100_000))
        assert second.call(body=whole).data == whole


@native_only
def test_tiny_unread_messages_are_bounded_too(
    serve: Callable[..., Served], until: Callable[..., None]
) -> None:
    """Five bytes on the wire are more in memory."""
    served = serve(received_bytes=MIB)
    with Polite(served.port) as client:
        stream = client.request(path("Late"), message(b"") * 20_000, end=False)
        assert client.answer(stream).status == "8"
        assert client.call(body=message(b"next")).status == "0"


@native_only
def test_a_caller_may_cancel_many_calls(served: Served) -> None:
    with Polite(served.port) as client:
        for _ in range(900):
            client.session.reset_stream(client.request(path("Wait"), message(b"a")))
            client.flush()
        assert client.call(body=message(b"next")).status == "0"
    assert served.closed == []


@native_only
def test_a_caller_that_leaves_its_socket_full_is_let_go(
    serve: Callable[..., Served], until: Callable[..., None]
) -> None:
    served = serve(stall_seconds=0.3)
    with Raw(served.port) as client:
        client.send(frame(SETTINGS, 0, 0, b"\0\4" + (2**31 - 1).to_bytes(4)))
        client.send(frame(WINDOW_UPDATE, 0, 0, (2**31 - 1 - 65535).to_bytes(4)))
        client.send(call(1, b"[1000, 65536]", path("Count")))
        until(lambda: served.closed == ["stalled"])
        assert served.probe.written < 24 * MIB
    assert served.answers()


@native_only
def test_answers_that_nobody_takes_share_a_bound(
    serve: Callable[..., Served], until: Callable[..., None]
) -> None:
    served = serve(unsent_bytes=MIB, pressed_seconds=0.3)
    with Polite(served.port, {4: 0}) as client:
        for _ in range(3):
            client.request(path("Grow"), message(b"500000"))
        with Polite(served.port) as other:
            until(lambda: other.call(body=message(b"a")).status == "8")
            until(lambda: served.closed == ["stalled"])
            until(lambda: other.call(body=message(b"a")).status == "0")


@native_only
def test_idle_and_old_connections_are_told_to_go(serve: Callable[..., Served]) -> None:
    for limits in ({"idle_seconds": 0.2}, {"age_seconds": 0.2}):
        served = serve(**limits)
        with Raw(served.port) as client:
            client.send(call(1))
            goodbyes = [payload for kind, _, _, payload in client.frames() if kind == GOAWAY]
        assert [int.from_bytes(payload[:4]) for payload in goodbyes] == [2**31 - 1, 1]
        assert [int.from_bytes(payload[4:8]) for payload in goodbyes] == [NO_ERROR] * 2
        assert served.closed == []


@native_only
def test_a_silent_caller_is_asked_and_then_let_go(serve: Callable[..., Served]) -> None:
    served = serve(keepalive_seconds=0.2, keepalive_timeout_seconds=0.2)
    with Polite(served.port) as lively, Raw(served.port) as silent:
        stream = lively.request(path("Wait"), message(b"a"))
        silent.send(call(1, path=path("Wait")))
        assert silent.until(PING)[1] & ACK == 0
        while not served.closed:
            lively.turn()  # answers the question
        assert served.closed == ["silent"]
        silent.goodbye()
        assert not lively.answers[stream].closed
        served.open()
        assert lively.answer(stream).data == message(b"a")


@native_only
def test_draining_waits_for_what_is_on_its_way(served: Served, until: Callable[..., None]) -> None:
    with Raw(served.port) as client:
        client.send(call(1, path=path("Wait")))
        until(lambda: served.probe.started == 1)
        stopping = threading.Thread(target=served.stop, args=(10.0,))
        stopping.start()
        last = client.until(GOAWAY)[3]
        assert int.from_bytes(last[:4]) == 2**31 - 1
        ping = client.until(PING)
        # This one was sent before the caller knew.
        client.send(call(3))
        assert client.until(DATA)[3] == message(b"hello")
        client.send(frame(PING, ACK, 0, ping[3]))
        last = client.until(GOAWAY)[3]
        assert (int.from_bytes(last[:4]), int.from_bytes(last[4:8])) == (3, NO_ERROR)
        served.open()
        assert client.until(DATA)[3] == message(b"hello")
        assert client.goodbye() is None
        stopping.join(10)


@native_only
def test_connections_beyond_the_limit_are_closed(serve: Callable[..., Served]) -> None:
    served = serve(connections=3)
    clients = [Polite(served.port) for _ in range(3)]
    assert [client.call(body=message(b"a")).status for client in clients] == ["0"] * 3
    with Raw(served.port) as fourth:
        assert fourth.goodbye() is None
    assert served.closed == ["connections"]
    clients.pop().socket.close()
    for client in clients:
        assert client.call(body=message(b"b")).status == "0"
        client.socket.close()
