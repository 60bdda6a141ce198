"""Streams of records: answered in order when the broker has them, bounded, and as PushRecords would answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from everloop_contracts.grpc_client import channel, error_info
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2 as pb
from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2_grpc
from everloop_ingest.push import Push
from everloop_ingest.stream import Incoming, RecordStream, StreamLimits
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper
from everloop_runtime.settings import ServiceSettings

Make = Callable[..., bytes]
LIMITS = StreamLimits(max_bytes=2**20, timeout_seconds=20.0, idle_seconds=20.0)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Caller:
    """Messages of a stream, counted as they are read; `gate` holds back all behind the first."""

    def __init__(self, messages: list[Incoming], *, held: bool = False) -> None:
        self._messages = messages
        self.read = 0
        self.gate = threading.Event()
        if not held:
            self.gate.set()

    def __iter__(self) -> Iterator[Incoming]:
        for message in self._messages:
            if self.read:
                self.gate.wait(20)
            self.read += 1
            yield message


@pytest.fixture
def streams(world: Any, sink: Any) -> Callable[..., RecordStream]:
    def make(limits: StreamLimits = LIMITS) -> RecordStream:
        push = Push({world.pipeline.name: world.pipeline}, sink, world.requests, 4096)
        return RecordStream(push, limits)

    return make


def message(world: Any, *records: bytes, request_id: str = "") -> Incoming:
    return Incoming(world.pipeline, records, request_id)


bodies = st.sampled_from(
    [b"{", b'{"parcel": "late", "lost": true}', b"[]", b"x" * 5000]
) | st.builds(
    lambda name, weight: (
        b'{"parcel": "%d", "sent": "2026-03-01T12:00:00Z", "weight": %d}' % (name, weight)
    ),
    st.integers(0, 9),
    st.integers(-5, 60),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(bodies, max_size=4), max_size=8), st.sampled_from([1, 600, 6000, 2**20]))
def test_a_stream_is_answered_as_single_pushes_would_be(
    world: Any, sink: Any, streams: Any, messages: list[list[bytes]], max_bytes: int
) -> None:
    sink.sent.clear()
    incoming = [message(world, *records) for records in messages]
    answers = list(streams(StreamLimits(max_bytes, 20.0, 20.0))(iter(incoming)))
    streamed = list(sink.sent)
    sink.sent.clear()
    push = Push({world.pipeline.name: world.pipeline}, sink, world.requests, 4096)
    expected = [push(world.pipeline, records, "", 5.0) for records in messages]
    assert [answer.rejections for answer in answers] == expected
    assert [answer.records for answer in answers] == [len(records) for records in messages]
    assert streamed == sink.sent


def test_a_caller_may_wait_for_each_answer(world: Any, streams: Any, make_record: Make) -> None:
    caller = Caller([message(world, make_record(name)) for name in "ab"], held=True)
    answers = streams()(iter(caller))
    assert next(answers).records == 1
    assert caller.read == 1
    caller.gate.set()
    assert len(list(answers)) == 1


def test_nothing_is_answered_before_the_broker_has_it(
    world: Any, sink: Any, streams: Any, make_record: Make
) -> None:
    sink.acknowledge.clear()
    answers: list[Any] = []
    caller = Caller([message(world, make_record(name)) for name in "abc"])
    reading = threading.Thread(target=lambda: answers.extend(streams()(iter(caller))))
    reading.start()
    until(lambda: len(sink.sent) == 3)  # sent ahead of the answers
    assert answers == []
    sink.acknowledge.set()
    reading.join(20)
    assert len(answers) == 3


@pytest.mark.parametrize("size", [100, 3000])
def test_what_is_not_answered_is_bounded(world: Any, sink: Any, streams: Any, size: int) -> None:
    sink.acknowledge.clear()
    most = 5000
    caller = Caller([message(world, b"x" * size) for _ in range(50)])
    answers = streams(StreamLimits(most, 20.0, 20.0))(iter(caller))
    reading = threading.Thread(target=lambda: list(answers))
    reading.start()
    fitting = most // (size + 2 * 512)
    # One more is read, and waits for room.
    until(lambda: caller.read == fitting + 1)
    assert not threading.Event().wait(0.05)
    assert (caller.read, len(sink.sent)) == (fitting + 1, fitting)
    sink.acknowledge.set()
    reading.join(20)
    assert len(sink.sent) == 50


def test_messages_without_records_are_bounded_too(world: Any, sink: Any, streams: Any) -> None:
    sink.acknowledge.clear()
    caller = Caller([message(world, b"x"), *[message(world)] * 50])
    reading = threading.Thread(
        target=lambda: list(streams(StreamLimits(4096, 20.0, 20.0))(iter(caller)))
    )
    reading.start()
    until(lambda: caller.read == 7)  # 1025 bytes for the first, 512 for each behind it
    assert not threading.Event().wait(0.05)
    assert caller.read == 7
    sink.acknowledge.set()
    reading.join(20)
    assert caller.read == 51


def test_a_message_larger_than_the_bound_goes_alone(world: Any, sink: Any, streams: Any) -> None:
    answers = streams(StreamLimits(10, 20.0, 20.0))(iter([message(world, b"x" * 99)] * 3))
    assert [len(answer.rejections) for answer in answers] == [1, 1, 1]


def test_what_fails_ends_the_stream_behind_what_was_answered(
    world: Any, sink: Any, streams: Any, make_record: Make
) -> None:
    caller = Caller([message(world, make_record(name)) for name in "abc"], held=True)
    answers = streams()(iter(caller))
    assert next(answers).records == 1
    sink.error = EverloopError(Kind.UNAVAILABLE, "BROKER_UNAVAILABLE", "away")
    caller.gate.set()
    with pytest.raises(EverloopError) as caught:
        next(answers)
    assert caught.value.reason == "BROKER_UNAVAILABLE"
    assert len(sink.sent) == 1


def test_a_stream_on_which_nothing_comes_ends(world: Any, streams: Any) -> None:
    caller = Caller([message(world), message(world)], held=True)
    answers = streams(StreamLimits(100, 20.0, 0.05))(iter(caller))
    assert next(answers).records == 0
    with pytest.raises(EverloopError) as caught:
        next(answers)
    assert (caught.value.kind, caught.value.reason) == (Kind.DEADLINE, "STREAM_IDLE")
    caller.gate.set()


def test_a_caller_that_leaves_is_not_read_any_further(world: Any, sink: Any, streams: Any) -> None:
    sink.acknowledge.clear()
    caller = Caller([message(world, b"x" * 1000) for _ in range(50)])
    answers = streams(StreamLimits(2000, 0.05, 20.0))(iter(caller))
    with pytest.raises(EverloopError):
        next(answers)
    reader = [item for item in threading.enumerate() if item.name == "record stream"]
    for item in reader:
        item.join(20)
    assert caller.read < 5


def test_what_was_answered_on_a_broken_stream_adds_nothing_on_the_next(
    world: Any, sink: Any, streams: Any, make_record: Make
) -> None:
    messages = [message(world, make_record(f"p{n}"), b"{", request_id=f"r{n}") for n in range(4)]
    first = streams()(iter(messages[:2]))
    before = [next(first), next(first)]
    first.close()
    world.restart()
    again = list(streams()(iter(messages)))
    assert again[:2] == before
    assert len(sink.sent) == 8
    with pytest.raises(EverloopError) as caught:
        list(streams()(iter([message(world, b"[]", request_id="r0")])))
    assert caught.value.reason == "REQUEST_ID_REUSED"


@pytest.fixture
def stub(world: Any, sink: Any, tmp_path: Path) -> Iterator[Any]:
    """The door on a real gRPC server with room for two streams of 64 KiB."""
    address = f"unix:{tmp_path / 'grpc.sock'}"
    config = ServiceSettings(
        data_dir=tmp_path,
        database_url="",
        grpc_address=address,
        metrics_address="127.0.0.1:0",
        drain_seconds=1,
        grpc_workers=4,
    )
    servicer = world.servicer(sink, StreamLimits(2**16, 20.0, 20.0))
    server = GrpcServer(
        config,
        [],
        [lambda s: ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicer, s)],
    )
    server.start(Stopper())
    with channel(address) as connection:
        yield ingest_pb2_grpc.IngestServiceStub(connection)
    sink.acknowledge.set()
    server.stop()


def test_records_stream_over_grpc(stub: Any, sink: Any, make_record: Make) -> None:
    requests = [
        pb.StreamRecordsRequest(pipeline="parcels", records=[make_record("a"), b"{"]),
        pb.StreamRecordsRequest(records=[make_record("b", weight=99)]),
        pb.StreamRecordsRequest(),
    ]
    answers = list(stub.StreamRecords(iter(requests), timeout=20))
    assert [(item.sequence, item.accepted, len(item.results)) for item in answers] == [
        (1, 1, 2),
        (2, 0, 1),
        (3, 0, 0),
    ]
    assert [item.reason for item in answers[0].results] == ["", "MALFORMED_JSON"]
    assert (answers[1].results[0].reason, answers[1].results[0].field) == ("OUT_OF_RANGE", "weight")
    assert len(sink.sent) == 3


def test_an_upload_is_answered_once_for_all(stub: Any, sink: Any, make_record: Make) -> None:
    requests = [
        pb.UploadRecordsRequest(pipeline="parcels", records=[make_record("a")] * 3),
        pb.UploadRecordsRequest(records=[make_record("b"), b"{"] * 600),
    ]
    answer = stub.UploadRecords(iter(requests), timeout=20)
    assert (answer.received, answer.accepted) == (1203, 603)
    assert dict(answer.rejected_by_reason) == {"MALFORMED_JSON": 600}
    assert [item.position for item in answer.rejected[:2]] == [4, 6]
    stream = stub.UploadRecords(iter([requests[0], *[requests[1]] * 3]), timeout=20)
    assert (stream.rejected_by_reason["MALFORMED_JSON"], len(stream.rejected)) == (1800, 1000)


def test_a_caller_that_sends_faster_than_the_broker_takes_is_held_up(stub: Any, sink: Any) -> None:
    sink.acknowledge.clear()
    sent = 0

    def flood() -> Iterator[pb.StreamRecordsRequest]:
        nonlocal sent
        for _ in range(1000):
            yield pb.StreamRecordsRequest(pipeline="parcels", records=[b"x" * 31_000])
            sent += 1

    answers = stub.StreamRecords(flood(), timeout=60)
    until(lambda: len(sink.sent) == 2)
    known = -1
    while known != sent:  # what gRPC itself holds between the two
        known = sent
        assert not threading.Event().wait(0.3)
    assert len(sink.sent) == 2
    assert sent < 500
    sink.acknowledge.set()
    assert sum(1 for _ in answers) == 1000
    assert len(sink.sent) == 1000


@pytest.mark.parametrize("method", ["StreamRecords", "UploadRecords"])
def test_an_error_ends_a_stream_with_its_reason(stub: Any, sink: Any, method: str) -> None:
    request = getattr(pb, f"{method}Request")
    for bad, reason in (
        (request(records=[b"{"]), "PIPELINE_NOT_FOUND"),
        (request(pipeline="parcels", request_id="x" * 201), "INVALID_REQUEST_ID"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call = getattr(stub, method)(iter([bad]), timeout=20)
            list(call)
        failure: Any = caught.value
        assert error_info(failure)[0] == reason


def test_streams_leave_workers_for_calls(stub: Any, make_record: Make) -> None:
    hold = threading.Event()

    def quiet() -> Iterator[pb.StreamRecordsRequest]:
        yield pb.StreamRecordsRequest(pipeline="parcels", records=[make_record("a")])
        hold.wait(20)

    open_ = [stub.StreamRecords(quiet(), timeout=20) for _ in range(2)]
    assert [next(stream).accepted for stream in open_] == [1, 1]
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.StreamRecords(quiet(), timeout=20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    request = pb.PushRecordsRequest(pipeline="parcels", records=[make_record("b")])
    assert stub.PushRecords(request, timeout=10).accepted == 1
    hold.set()
    assert [list(stream) for stream in open_] == [[], []]
