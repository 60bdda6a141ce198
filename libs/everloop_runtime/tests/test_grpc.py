"""A real server and a real client: errors, deadlines, traces, metrics, health, limits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from opentelemetry import trace
from prometheus_client import REGISTRY

from everloop_contracts.stubs.everloop.training.v1 import training_pb2 as pb
from everloop_contracts.stubs.everloop.training.v1 import training_pb2_grpc
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import DOMAIN, GRPC_CODES, EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper
from everloop_runtime.settings import ServiceSettings
from everloop_runtime.telemetry import configure, span

NAME = "everloop.training.v1.TrainingService"


class Servicer(training_pb2_grpc.TrainingServiceServicer):
    """Does what the test says."""

    def __init__(self) -> None:
        self.act: Callable[[], None] = lambda: None
        self.entered = threading.Semaphore(0)
        self.leave = threading.Event()

    def GetTraining(self, request, context):
        self.act()
        return pb.GetTrainingResponse(training=pb.Training(id=request.id))

    def WatchTraining(self, request, context):
        yield pb.WatchTrainingResponse(training=pb.Training(id="1"))
        self.act()
        yield pb.WatchTrainingResponse(training=pb.Training(id="2"))

    def ListTrainings(self, request, context):
        raise NotImplementedError

    def CancelTraining(self, request, context):
        raise NotImplementedError

    def StartTraining(self, request, context):
        self.entered.release()
        assert self.leave.wait(20)
        return pb.StartTrainingResponse(training=pb.Training(id="slow"))


@pytest.fixture
def servicer() -> Servicer:
    return Servicer()


@pytest.fixture
def address(tmp_path) -> str:
    return f"unix:{tmp_path / 'grpc.sock'}"


@pytest.fixture
def server(servicer, address, tmp_path) -> Iterator[GrpcServer]:
    configure("test")
    settings = ServiceSettings(
        data_dir=tmp_path,
        database_url="",
        grpc_address=address,
        metrics_address="127.0.0.1:0",
        drain_seconds=5,
        grpc_workers=4,
        grpc_max_concurrent_calls=4,
        grpc_max_message_bytes=4096,
    )
    server = GrpcServer(
        settings,
        [NAME],
        [lambda s: training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, s)],
    )
    server.start(Stopper())
    yield server
    servicer.leave.set()
    server.stop()


@pytest.fixture
def connection(server, address) -> Iterator[grpc.Channel]:
    with channel(address) as connection:
        yield connection


@pytest.fixture
def stub(connection):
    return training_pb2_grpc.TrainingServiceStub(connection)


def fail_with(error: Exception) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def info_of(error: Any) -> error_details_pb2.ErrorInfo:
    status = rpc_status.from_call(error)
    assert status is not None
    (detail,) = status.details
    info = error_details_pb2.ErrorInfo()
    assert detail.Unpack(info)
    return info


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("streaming", [False, True], ids=["unary", "stream"])
def test_an_error_arrives_with_its_code_and_one_error_info(servicer, stub, kind, streaming):
    servicer.act = fail_with(EverloopError(kind, "SOME_REASON", "what to do", field="x"))
    with pytest.raises(grpc.RpcError) as caught:
        if streaming:
            list(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5))
        else:
            stub.GetTraining(pb.GetTrainingRequest(), timeout=5)
    assert caught.value.code() is GRPC_CODES[kind]
    assert caught.value.details() == "what to do"
    info = info_of(caught.value)
    assert (info.reason, info.domain, info.metadata["field"]) == ("SOME_REASON", DOMAIN, "x")


@pytest.mark.parametrize(
    "kind", sorted(set(Kind) - {Kind.DEADLINE, Kind.UNAUTHENTICATED, Kind.DENIED})
)
def test_a_client_gets_the_error_back_as_it_was_raised(servicer, stub, kind):
    servicer.act = fail_with(EverloopError(kind, "SOME_REASON", "what to do", field="x"))
    with pytest.raises(EverloopError) as caught:
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    error = caught.value
    assert (error.kind, error.reason, error.message, error.metadata) == (
        kind,
        "SOME_REASON",
        "what to do",
        {"field": "x"},
    )


def test_an_unknown_exception_tells_the_caller_nothing_and_the_log_everything(
    servicer, stub, capsys
):
    configure("test")
    servicer.act = fail_with(ValueError("the password is hunter2"))
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetTraining(pb.GetTrainingRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in (caught.value.details() or "")
    assert info_of(caught.value).reason == "INTERNAL"
    log = capsys.readouterr().err
    assert "hunter2" in log
    assert "Traceback" in log


def test_an_expected_error_leaves_no_traceback_in_the_log(servicer, stub, capsys):
    configure("test")
    servicer.act = fail_with(EverloopError(Kind.NOT_FOUND, "NOT_HERE", "not here"))
    with pytest.raises(grpc.RpcError):
        stub.GetTraining(pb.GetTrainingRequest(), timeout=5)
    assert "Traceback" not in capsys.readouterr().err


def test_what_a_stream_sent_before_it_failed_arrives(servicer, stub):
    servicer.act = fail_with(EverloopError(Kind.UNAVAILABLE, "GONE", "gone"))
    seen = []
    with pytest.raises(grpc.RpcError):
        for answer in stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5):
            seen.append(answer.training.id)
    assert seen == ["1"]


def test_nobody_there_is_unavailable(tmp_path):
    with channel(f"unix:{tmp_path / 'nobody.sock'}") as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        with pytest.raises(EverloopError) as caught:
            call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "UNAVAILABLE")


def test_a_deadline_that_passes_is_unavailable_to_the_caller(servicer, stub):
    with pytest.raises(EverloopError) as caught:
        call(stub.StartTraining, pb.StartTrainingRequest(), timeout=0.2)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "DEADLINE_EXCEEDED")


def test_calls_beyond_the_limit_are_refused(servicer, stub):
    calls = [stub.StartTraining.future(pb.StartTrainingRequest(), timeout=20) for _ in range(4)]
    assert all(servicer.entered.acquire(timeout=5) for _ in calls)
    with pytest.raises(EverloopError) as caught:
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    assert caught.value.kind is Kind.EXHAUSTED
    servicer.leave.set()
    assert [done.result().training.id for done in calls] == ["slow"] * 4


def test_a_message_beyond_the_limit_is_refused(stub):
    with pytest.raises(EverloopError) as caught:
        call(stub.GetTraining, pb.GetTrainingRequest(id="x" * 5000), timeout=5)
    assert caught.value.kind is Kind.EXHAUSTED


def test_a_call_continues_the_caller_s_trace(servicer, stub):
    seen = []
    servicer.act = lambda: seen.append(trace.get_current_span().get_span_context().trace_id)
    with span("caller"):
        here = trace.get_current_span().get_span_context().trace_id
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    assert seen == [here]


def test_every_log_line_of_a_call_has_its_trace_id(servicer, stub, capsys):
    configure("test")
    servicer.act = lambda: logging.getLogger("somewhere").warning("at work")
    with span("caller"):
        here = trace.get_current_span().get_span_context().trace_id
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "at work" in line]
    assert f'"trace_id": "{here:032x}"' in line


def test_calls_are_counted_by_method_and_code(servicer, stub):
    def count(code: str) -> float:
        labels = {"method": f"/{NAME}/GetTraining", "code": code}
        return REGISTRY.get_sample_value("everloop_grpc_requests_total", labels) or 0.0

    before = count("OK"), count("NOT_FOUND")
    call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    servicer.act = fail_with(EverloopError(Kind.NOT_FOUND, "NOT_HERE", "not here"))
    with pytest.raises(EverloopError):
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    assert (count("OK"), count("NOT_FOUND")) == (before[0] + 1, before[1] + 1)


@pytest.mark.parametrize("service", ["", NAME])
def test_health_follows_readiness(server, connection, service):
    health: Any = health_pb2_grpc.HealthStub(connection)

    def status() -> int:
        answer: int = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
        return answer

    assert status() == health_pb2.HealthCheckResponse.NOT_SERVING
    server.ready(True)
    assert status() == health_pb2.HealthCheckResponse.SERVING
    server.ready(False)
    assert status() == health_pb2.HealthCheckResponse.NOT_SERVING


def test_streams_leave_workers_for_calls(stub, servicer):
    servicer.act = lambda: servicer.leave.wait(20) and None
    streams = [stub.WatchTraining(pb.WatchTrainingRequest(), timeout=20) for _ in range(2)]
    assert [next(stream).training.id for stream in streams] == ["1", "1"]
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=20))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    servicer.act = lambda: None
    assert stub.GetTraining(pb.GetTrainingRequest(id="x"), timeout=5).training.id == "x"
    servicer.leave.set()
    assert [next(stream).training.id for stream in streams] == ["2", "2"]
    for stream in streams:
        assert list(stream) == []
    assert len(list(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5))) == 2


def test_watched_streams_hold_no_worker_and_are_as_many_as_they_may_be(servicer, tmp_path):
    address = f"unix:{tmp_path / 'watched.sock'}"
    settings = ServiceSettings(
        data_dir=tmp_path,
        database_url="",
        grpc_address=address,
        metrics_address="127.0.0.1:0",
        grpc_workers=1,
        grpc_max_concurrent_calls=1,
        drain_seconds=0,
    )
    server = GrpcServer(
        settings,
        [NAME],
        [lambda it: training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, it)],
        watched={f"/{NAME}/WatchTraining": 3},
    )
    server.start(Stopper())
    servicer.act = lambda: servicer.leave.wait(20) and None
    with channel(address) as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        streams = [stub.WatchTraining(pb.WatchTrainingRequest(), timeout=20) for _ in range(3)]
        assert [next(stream).training.id for stream in streams] == ["1"] * 3
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                next(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=20))
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        servicer.act = lambda: None
        assert stub.GetTraining(pb.GetTrainingRequest(id="x"), timeout=5).training.id == "x"
        servicer.leave.set()
        assert [[answer.training.id for answer in stream] for stream in streams] == [["2"]] * 3
        # Whoever hangs up makes room.
        assert len(list(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5))) == 2
    server.stop()


def test_watching_health_holds_no_worker(server, connection, stub):
    health: Any = health_pb2_grpc.HealthStub(connection)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
    assert [next(watch).status for watch in watches] == [
        health_pb2.HealthCheckResponse.NOT_SERVING
    ] * 3
    call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    server.ready(True)
    assert [next(watch).status for watch in watches] == [health_pb2.HealthCheckResponse.SERVING] * 3
    for watch in watches:
        watch.cancel()


@pytest.mark.timeout(30)
def test_a_watcher_that_hangs_up_while_health_changes_holds_nothing_up(server, connection):
    health: Any = health_pb2_grpc.HealthStub(connection)
    for round_ in range(50):
        watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(3)]
        for watch in watches:
            next(watch)
        for watch in watches:
            watch.cancel()
        server.ready(round_ % 2 == 0)


def test_reflection_names_the_services(connection):
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(connection)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {NAME, "grpc.health.v1.Health"}
    for symbol in (NAME, f"{NAME}.GetTraining", f"{NAME}.Ghost", "ghost"):
        request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
        (answer,) = reflection.ServerReflectionInfo(iter([request]), timeout=5)
        found = bool(answer.file_descriptor_response.file_descriptor_proto)
        assert found == ("host" not in symbol), symbol


def test_stopping_lets_running_calls_finish(server, servicer, stub):
    running = stub.StartTraining.future(pb.StartTrainingRequest(), timeout=20)
    assert servicer.entered.acquire(timeout=5)
    stopping = threading.Thread(target=server.stop)
    stopping.start()
    servicer.leave.set()
    assert running.result().training.id == "slow"
    stopping.join(timeout=10)
    assert not stopping.is_alive()


def test_a_taken_address_fails_at_start(tmp_path):
    settings = ServiceSettings(
        data_dir=tmp_path,
        database_url="",
        grpc_address="127.0.0.1:0",
        metrics_address="127.0.0.1:0",
    )
    with pytest.raises(RuntimeError):
        import socket

        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            taken_settings = settings.model_copy(update={"grpc_address": f"127.0.0.1:{port}"})
            GrpcServer(taken_settings, [], []).start(Stopper())
