"""What a stock gRPC client may expect: the same from the native server as from grpcio's."""

from __future__ import annotations

import asyncio
import json
import queue
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from services.inference.tests.rpc.conftest import SERVICE, Served, unary
from services.inference.tests.rpc.wire import Polite, message

from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.rpc import Methods

MIB = 1024 * 1024
CODE = grpc.StatusCode


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


@pytest.fixture
def channel(served: Served) -> Iterator[Any]:
    with closing(served.channel()) as channel:
        yield channel


def code_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


# The four kinds of calls.


@pytest.mark.parametrize("name", ["Echo", "Promise"])
@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB])
def test_a_unary_call_is_answered(channel: Any, name: str, size: int) -> None:
    assert unary(channel, name)(bytes(size), timeout=10) == bytes(size)


def test_a_coroutine_is_answered_when_it_is_done(served: Served, channel: Any) -> None:
    future = unary(channel, "Wait").future(b"x", timeout=10)
    assert unary(channel, "Echo")(b"y", timeout=10) == b"y"
    assert not future.done()
    served.open()
    assert future.result() == b"x"


def test_a_stream_of_answers_comes_in_order_and_ends(channel: Any) -> None:
    call = channel.unary_stream(path("Count"))(json.dumps([50, 100]).encode(), timeout=10)
    assert [len(answer) for answer in call] == [100] * 50
    assert call.code() is CODE.OK
    assert list(channel.unary_stream(path("Count"))(b"[0, 0]", timeout=10)) == []


@pytest.mark.parametrize("number", [0, 1, 300])
def test_a_stream_of_requests_is_answered_once(channel: Any, number: int) -> None:
    requests = (bytes(1000) for _ in range(number))
    answer = channel.stream_unary(path("Total"))(requests, timeout=10)
    assert json.loads(answer) == [number, number * 1000]


@pytest.mark.parametrize("name", ["Chat", "Talk"])
def test_both_streams_run_at_once(channel: Any, name: str) -> None:
    requests: queue.Queue[bytes | None] = queue.Queue()
    call = channel.stream_stream(path(name))(iter(requests.get, None), timeout=10)
    for number in range(20):
        requests.put(b"%d" % number)
        assert next(call) == b"%d" % number
    requests.put(None)
    assert list(call) == []
    assert call.code() is CODE.OK


def test_a_server_may_end_a_stream_before_its_caller(channel: Any) -> None:
    requests: queue.Queue[bytes | None] = queue.Queue()
    call = channel.stream_stream(path("Chat"))(iter(requests.get, None), timeout=10)
    requests.put(b"go")
    assert next(call) == b"go"
    requests.put(b"stop")
    assert list(call) == []
    assert call.code() is CODE.OK
    requests.put(None)


def test_calls_share_a_connection(channel: Any) -> None:
    echo = unary(channel, "Echo")
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda n: echo(b"%d" % n, timeout=20), range(1000)))
    assert answers == [b"%d" % number for number in range(1000)]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of every connection are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 3000:
        pytest.skip(f"this user may open {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 3000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_thousand_connections_are_served(served: Served) -> None:
    clients = [Polite(served.port) for _ in range(1000)]
    try:
        for turn in range(2):
            streams = [client.request(body=message(b"%d" % turn)) for client in clients]
            for client, stream in zip(clients, streams, strict=True):
                answer = client.answer(stream)
                assert (answer.status, answer.data) == ("0", message(b"%d" % turn))
    finally:
        for client in clients:
            client.socket.close()


# Deadlines and cancellation.


def test_a_deadline_ends_the_call_and_its_handler(
    served: Served, channel: Any, until: Callable[..., None]
) -> None:
    began = time.monotonic()
    code, _ = code_of(lambda: unary(channel, "Wait")(b"", timeout=1.0))
    assert code is CODE.DEADLINE_EXCEEDED
    assert 0.9 < time.monotonic() - began < 10
    until(lambda: served.probe.cancelled == 1)
    (remaining,) = served.probe.remaining
    assert remaining is not None
    assert 0 < remaining < 1.1  # the client rounds up
    until(lambda: len(served.probe.done) == 1)


def test_without_a_deadline_none_remains(
    served: Served, channel: Any, until: Callable[..., None]
) -> None:
    future = unary(channel, "Wait").future(b"")
    served.open()
    future.result()
    (remaining,) = served.probe.remaining
    # grpcio's asyncio server names a moment far away.
    assert remaining is None or (served.kind == "grpcio" and remaining > 1e6), remaining
    until(lambda: served.probe.done == [False])


@pytest.mark.parametrize("name", ["Wait", "Hold"])
def test_a_cancelled_call_cancels_its_handler(
    served: Served, channel: Any, until: Callable[..., None], name: str
) -> None:
    call = (
        unary(channel, name).future(b"")
        if name == "Wait"
        else channel.unary_stream(path(name))(b"")
    )
    until(lambda: served.probe.started == 1)
    call.cancel()
    until(lambda: served.probe.cancelled == 1)
    assert served.well()


def test_a_lost_connection_cancels_its_handlers(served: Served, until: Callable[..., None]) -> None:
    with Polite(served.port) as client:
        for _ in range(5):
            client.request(path("Wait"), message(b""))
        until(lambda: served.probe.started == 5)
    until(lambda: served.probe.cancelled == 5)


# Flow control.


def test_a_caller_that_does_not_read_stops_the_handler(
    served: Served, channel: Any, until: Callable[..., None]
) -> None:
    number, size = 1000, 64 * 1024
    call = channel.unary_stream(path("Count"))(json.dumps([number, size]).encode(), timeout=60)
    assert len(next(call)) == size
    written = settled(lambda: served.probe.written, until)
    assert written < 24 * MIB
    assert served.well()
    assert sum(len(answer) for answer in call) == (number - 1) * size


def test_a_handler_that_does_not_read_stops_the_caller(
    served: Served, channel: Any, until: Callable[..., None]
) -> None:
    number, size = 1000, 64 * 1024
    taken = 0

    def requests() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(number):
            taken += size
            yield bytes(size)

    future = channel.stream_unary(path("Late")).future(requests(), timeout=60)
    until(lambda: served.probe.started == 1)
    assert settled(lambda: taken, until) < 24 * MIB
    assert served.well()
    served.open()
    assert json.loads(future.result()) == [number, number * size]


def settled(value: Callable[[], int], until: Callable[..., None]) -> int:
    """The value, once it has not changed for a while."""
    seen, since = value(), time.monotonic()

    def still() -> bool:
        nonlocal seen, since
        if (now := value()) != seen:
            seen, since = now, time.monotonic()
        return seen > 0 and time.monotonic() - since > 0.5

    until(still, 30.0)
    return seen


LARGE = ("grpc.max_receive_message_length", 32 * MIB), ("grpc.max_send_message_length", 32 * MIB)


def test_messages_may_be_as_large_as_the_limit(serve: Callable[..., Served]) -> None:
    served = serve(message_bytes=24 * MIB)
    with closing(served.channel(*LARGE)) as channel:
        large = bytes(20 * MIB)
        assert unary(channel, "Echo")(large, timeout=60) == large
        call = channel.stream_stream(path("Chat"))(iter([large, large]), timeout=60)
        assert [len(answer) for answer in call] == [len(large)] * 2


def test_larger_messages_are_refused_either_way(serve: Callable[..., Served]) -> None:
    served = serve(message_bytes=10_000)
    with closing(served.channel()) as channel:
        echo, grow = unary(channel, "Echo"), unary(channel, "Grow")
        assert len(echo(bytes(10_000), timeout=10)) == 10_000
        assert code_of(lambda: echo(bytes(10_001), timeout=10))[0] is CODE.RESOURCE_EXHAUSTED
        assert code_of(lambda: grow(b"10001", timeout=10))[0] is CODE.RESOURCE_EXHAUSTED
        stream = channel.stream_stream(path("Chat"))
        answers = stream(iter([b"ok", bytes(10_001)]), timeout=10)
        assert code_of(lambda: list(answers))[0] is CODE.RESOURCE_EXHAUSTED
        many = channel.unary_stream(path("Count"))(b"[1, 10001]", timeout=10)
        assert code_of(lambda: list(many))[0] is CODE.RESOURCE_EXHAUSTED
        assert len(echo(bytes(10_000), timeout=10)) == 10_000


# Compression.


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests_are_understood(served: Served, compression: grpc.Compression) -> None:
    with closing(served.channel(compression=compression)) as channel:
        content = b"many times the same " * 10_000
        assert unary(channel, "Echo")(content, timeout=10) == content
        call = channel.stream_stream(path("Chat"))(iter([content, content]), timeout=10)
        assert list(call) == [content, content]


def test_an_answer_is_compressed_where_its_handler_wants_it(served: Served, channel: Any) -> None:
    content = b"many times the same " * 1000
    assert unary(channel, "Packed")(content, timeout=10) == content
    if served.kind == "grpcio":
        pytest.skip("grpcio's asyncio server announces the compression and does not do it")
    with Polite(served.port) as client:
        accepts = ("grpc-accept-encoding", "identity,gzip")
        answer = client.call(path("Packed"), message(content), accepts)
        assert answer.headers["grpc-encoding"] == "gzip"
        assert answer.data[0] == 1
        assert len(answer.data) < 1000
        excepted = client.call(path("Packed"), message(b"as it is" + content), accepts)
        assert excepted.data == message(b"as it is" + content)
        plain = client.call(path("Packed"), message(content))
        assert plain.data == message(content)


# Metadata and statuses.


def test_metadata_travel_both_ways(channel: Any) -> None:
    pairs = (
        ("x-text", "plain: 100 % = fine"),
        ("x-many", "one"),
        ("x-many", "two"),
        ("x-raw-bin", bytes(range(256))),
        ("x-raw-bin", b""),
    )
    answer, call = unary(channel, "Tell").with_call(b"body", metadata=pairs, timeout=10)
    assert answer == b"body"
    initial = [tuple(pair) for pair in call.initial_metadata()]
    trailing = [tuple(pair) for pair in call.trailing_metadata()]
    for pair in pairs:
        assert pair in initial
        assert pair in trailing
    (peer,) = (value for key, value in initial if key == "peer")
    assert str(peer).startswith("ipv4:127.0.0.1:")


def test_too_much_metadata_is_refused_and_nobody_else_suffers(
    serve: Callable[..., Served],
) -> None:
    served = serve(metadata_bytes=8192)
    with closing(served.channel()) as channel:
        echo = unary(channel, "Echo")
        fits = (("x-much", "x" * 4000),)
        assert echo(b"a", metadata=fits, timeout=10) == b"a"
        much = (("x-much", "x" * 40_000),)
        code, _ = code_of(lambda: echo(b"b", metadata=much, timeout=10))
        assert code is CODE.RESOURCE_EXHAUSTED
        assert echo(b"c", metadata=fits, timeout=10) == b"c"


@pytest.mark.parametrize("code", [code for code in CODE if code is not CODE.OK])
def test_every_status_arrives(channel: Any, code: grpc.StatusCode) -> None:
    for details in ("", "plain", "ünïcode: 機械, 50 % of\nlines", "%41"):
        asked = json.dumps({"code": code.name, "details": details}).encode()
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "Refuse")(asked, timeout=10)
        error: Any = caught.value
        assert (error.code(), error.details()) == (code, details)
        assert ("x-why", "because") in [tuple(pair) for pair in error.trailing_metadata()]


def test_an_endless_status_message_is_cut(served: Served, channel: Any) -> None:
    asked = json.dumps({"code": "NOT_FOUND", "details": "n" * 100_000}).encode()
    code, _ = code_of(lambda: unary(channel, "Refuse")(asked, timeout=10))
    # grpcio sends it all, which its own client refuses.
    assert code is (CODE.NOT_FOUND if served.kind == "native" else CODE.RESOURCE_EXHAUSTED)


def test_error_details_arrive(channel: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        unary(channel, "Explain")(b"", timeout=10)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # it is a grpc.Call too
    assert status is not None
    assert (status.code, status.message) == (5, "nothing hier: ü")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata["a"]) == ("TOO_BAD", "ü")


def test_a_failing_handler_says_nothing_of_its_insides(
    channel: Any, caplog: pytest.LogCaptureFixture
) -> None:
    code, details = code_of(lambda: unary(channel, "Fail")(b"", timeout=10))
    assert code is CODE.UNKNOWN
    assert "secret" not in details
    assert "secret" in caplog.text


def test_a_status_may_be_set_by_hand(channel: Any) -> None:
    found = code_of(lambda: unary(channel, "Code")(b"", timeout=10))
    assert found == (CODE.OUT_OF_RANGE, "set by hand")


def test_what_is_not_there_is_unimplemented(channel: Any) -> None:
    for name in (path("Nothing"), "/no.Service/Echo", "/"):
        nothing = partial(channel.unary_unary(name), b"", timeout=10)
        assert code_of(nothing)[0] is CODE.UNIMPLEMENTED, name
    assert code_of(lambda: unary(channel, "Unwritten")(b"", timeout=10))[0] is CODE.UNIMPLEMENTED
    stub = oip_grpc.GRPCInferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError, match="not implemented"):
        stub.ServerLive(oip.ServerLiveRequest(), timeout=10)
    stream = channel.stream_stream("/no.Service/Chat")(iter([b"a"]), timeout=10)
    assert code_of(lambda: list(stream))[0] is CODE.UNIMPLEMENTED


def test_a_service_without_named_methods_is_not_taken() -> None:
    generic = grpc.method_handlers_generic_handler("old.Service", {})
    methods = Methods()
    methods.add_generic_rpc_handlers((generic,))
    with pytest.raises(ValueError, match="newer"):
        methods.by_path()


def test_a_request_that_cannot_be_parsed_is_refused(channel: Any) -> None:
    garbled = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    # grpcio takes it for a failing handler.
    assert code_of(lambda: garbled(b"\xff\xff\xff", timeout=10))[0] in {CODE.INTERNAL, CODE.UNKNOWN}


# Limits and the end.


def test_calls_beyond_the_limit_are_refused_at_once(
    serve: Callable[..., Served], until: Callable[..., None]
) -> None:
    served = serve(concurrent_calls=3)
    with closing(served.channel()) as channel:
        held = [channel.unary_stream(path("Hold"))(b"", timeout=30) for _ in range(3)]
        assert [next(call) for call in held] == [b"begun"] * 3
        echo = unary(channel, "Echo")
        assert code_of(lambda: echo(b"", timeout=10))[0] is CODE.RESOURCE_EXHAUSTED
        held[0].cancel()

        def answered() -> bool:
            try:
                return bool(echo(b"again", timeout=10) == b"again")
            except grpc.RpcError as error:
                assert error.code() is CODE.RESOURCE_EXHAUSTED
                return False

        until(answered)
        served.open()
        assert [list(call) for call in held[1:]] == [[b"ended"]] * 2


def test_a_client_s_keepalive_is_answered(served: Served) -> None:
    options = ("grpc.keepalive_time_ms", 100), ("grpc.keepalive_timeout_ms", 2000)
    with closing(served.channel(*options, ("grpc.http2.max_pings_without_data", 0))) as channel:
        call = channel.unary_stream(path("Hold"))(b"", timeout=30)
        assert next(call) == b"begun"
        timer = threading.Timer(1.0, served.open)
        timer.start()
        assert next(call) == b"ended"
        timer.join()


def test_running_calls_finish_when_the_server_drains(
    served: Served, until: Callable[..., None]
) -> None:
    with closing(served.channel()) as channel:
        waiting = [unary(channel, "Wait").future(b"%d" % n, timeout=30) for n in range(20)]
        stream = channel.unary_stream(path("Hold"))(b"", timeout=30)
        assert next(stream) == b"begun"
        until(lambda: served.probe.started == 21)
        stopping = threading.Thread(target=served.stop, args=(20.0,))
        stopping.start()
        with pytest.raises(grpc.RpcError):
            # The address is free: nobody listens any more.
            until(lambda: unary(channel, "Echo")(b"", timeout=5) and False)
        served.open()
        assert [future.result() for future in waiting] == [b"%d" % n for n in range(20)]
        assert list(stream) == [b"ended"]
        stopping.join(20)
        assert not stopping.is_alive()


def test_a_server_hands_over_to_another_without_a_failed_call(
    serve: Callable[..., Served], until: Callable[..., None]
) -> None:
    first = serve()
    if first.kind == "grpcio":
        pytest.skip("grpcio's asyncio server answers CANCELLED to calls that come while it stops")
    stop = threading.Event()
    answered: list[int] = [0] * 8
    failures: list[BaseException] = []

    def caller(number: int) -> None:
        with closing(first.channel()) as channel:
            echo = unary(channel, "Echo")
            while not stop.is_set():
                try:
                    # Waits for a connection; a call that was sent is never repeated.
                    assert echo(b"x", timeout=20, wait_for_ready=True) == b"x"
                except BaseException as error:
                    failures.append(error)
                answered[number] += 1

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(8)]
    for thread in callers:
        thread.start()
    until(lambda: min(answered) > 20)
    current = first
    for _ in range(3):
        following = serve(port=first.port)
        current.stop(10.0)
        current = following
        before = list(answered)
        until(lambda before=before: all(b > a + 20 for a, b in zip(before, answered, strict=True)))
    stop.set()
    for thread in callers:
        thread.join()
    assert failures == []


def test_what_runs_on_after_the_grace_is_ended(served: Served, until: Callable[..., None]) -> None:
    with closing(served.channel()) as channel:
        future = unary(channel, "Wait").future(b"", timeout=30)
        until(lambda: served.probe.started == 1)
        served.stop(0.2)
        assert code_of(future.result)[0] in {CODE.UNAVAILABLE, CODE.CANCELLED}
        assert served.probe.cancelled == 1


# Health and reflection.


def test_health_is_checked_and_watched(served: Served, channel: Any) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    status = health_pb2.HealthCheckResponse
    request = health_pb2.HealthCheckRequest
    assert stub.Check(request(service=""), timeout=10).status == status.SERVING
    code, _ = code_of(lambda: stub.Check(request(service="nobody"), timeout=10))
    assert code is CODE.NOT_FOUND
    watch = stub.Watch(request(service="models"), timeout=30)
    assert next(watch).status == status.SERVICE_UNKNOWN
    served.run(served.health.set("models", status.SERVING))
    assert next(watch).status == status.SERVING
    served.run(served.health.enter_graceful_shutdown())
    assert next(watch).status == status.NOT_SERVING
    watch.cancel()


def test_reflection_describes_the_services(channel: Any) -> None:
    untyped: Any = reflection_pb2_grpc
    stub = untyped.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest
    asked = [
        request(list_services=""),
        request(file_containing_symbol="inference.GRPCInferenceService"),
        request(file_containing_symbol="no.Such"),
    ]
    listed, found, missing = stub.ServerReflectionInfo(iter(asked), timeout=10)
    names = {item.name for item in listed.list_services_response.service}
    assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    assert found.file_descriptor_response.file_descriptor_proto
    assert missing.error_response.error_code == CODE.NOT_FOUND.value[0]


def test_asyncio_clients_are_served_too(served: Served) -> None:
    async def calls() -> list[bytes]:
        async with grpc.aio.insecure_channel(served.address) as channel:
            echo: Any = channel.unary_unary(path("Echo"))
            return list(await asyncio.gather(*(echo(b"%d" % n, timeout=20) for n in range(200))))

    assert asyncio.run(calls()) == [b"%d" % number for number in range(200)]
