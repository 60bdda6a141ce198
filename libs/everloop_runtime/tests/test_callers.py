"""Who may call: the file, the header, and a server that asks."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from libs.everloop_runtime.tests.who_may_call import entry, refusal

from everloop_contracts.services import Service
from everloop_contracts.stubs.everloop.training.v1 import training_pb2 as pb
from everloop_contracts.stubs.everloop.training.v1 import training_pb2_grpc
from everloop_contracts.yaml_file import PipelineError
from everloop_runtime import callers as module
from everloop_runtime.callers import Callers
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import Stopper
from everloop_runtime.settings import ServiceSettings

NAME = "everloop.training.v1.TrainingService"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "callers.yaml"
    path.write_text(
        "callers:\n"
        + entry("ann", "ann's", "trainer", "inference")
        + entry("shop", "shop's", "inference")
    )
    return path


def test_a_token_says_who_calls(file):
    callers = Callers(file, Service.TRAINER)
    assert callers.admit("Bearer ann's") == callers.admit("bearer  ann's ") == "ann"


@pytest.mark.parametrize(
    ("sent", "kind", "reason"),
    [
        (None, Kind.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("Basic ann's", Kind.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("Bearer ", Kind.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("Bearer ann", Kind.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ("Bearer " + hashlib.sha256(b"ann's").hexdigest(), Kind.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ("Bearer ü", Kind.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ("Bearer shop's", Kind.DENIED, "CALLER_DENIED"),
    ],
)
def test_nobody_else_gets_in(file, sent, kind, reason):
    with pytest.raises(EverloopError) as caught:
        Callers(file, Service.TRAINER).admit(sent)
    assert (caught.value.kind, caught.value.reason) == (kind, reason)


def test_a_file_that_changes_is_read_again_and_a_broken_one_changes_nothing(
    file, monkeypatch, caplog
):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    callers = Callers(file, Service.TRAINER)
    file.write_text("callers:\n" + entry("bob", "bob's", "trainer"))
    assert callers.admit("Bearer bob's") == "bob"
    with pytest.raises(EverloopError, match="nobody"):
        callers.admit("Bearer ann's")
    file.write_text("callers: nobody at all\n")
    assert callers.admit("Bearer bob's") == "bob"
    assert "callers stay as they were" in caplog.text
    # As Kubernetes changes a mounted Secret: another file takes its name.
    other = file.with_suffix(".new")
    other.write_text("callers:\n" + entry("cy", "cy's", "trainer"))
    os.replace(other, file)
    assert callers.admit("Bearer cy's") == "cy"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "callers:\n  - {name: ann, services: [trainer]}\n",
            "callers.yaml:2: .*sha256: is missing",
        ),
        ("callers:\n" + entry("ann", "a", "trainers"), "callers.yaml:2: .*services"),
        ("callers:\n" + entry("a", "a", "trainer") + entry("b", "a", "trainer"), "the same token"),
        ("callers:\n  - {name: ann, services: [], sha256: 0}\n", "services"),
        ("callers:\n" + entry("registry_gateway", "a", "trainer"), "is a service"),
        ("callers:\n" + entry("ann", "", "trainer"), "no token at all"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_line_by_line(tmp_path, text, told):
    path = tmp_path / "callers.yaml"
    path.write_text(text)
    with pytest.raises(PipelineError, match=told):
        Callers(path, Service.TRAINER)


class Settings(ServiceSettings):
    service = Service.TRAINER


def test_a_service_does_not_start_with_such_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EVERLOOP_CALLERS_FILE", str(tmp_path / "none.yaml"))
    monkeypatch.setenv("EVERLOOP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("EVERLOOP_DATABASE_URL", "sqlite://")
    monkeypatch.setenv("EVERLOOP_GRPC_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("EVERLOOP_METRICS_ADDRESS", "127.0.0.1:2")
    with pytest.raises(SystemExit):
        Settings.load()
    assert "EVERLOOP_CALLERS_FILE" in capsys.readouterr().err
    monkeypatch.setenv("EVERLOOP_CALLERS_FILE", "")
    assert Settings.load().callers() is None


class Servicer(training_pb2_grpc.TrainingServiceServicer):
    """Answers, and remembers who cancelled."""

    actor = ""
    between = staticmethod(lambda: None)

    def GetTraining(self, request, context):
        return pb.GetTrainingResponse()

    def WatchTraining(self, request, context):
        yield pb.WatchTrainingResponse()
        self.between()
        yield pb.WatchTrainingResponse()

    def ListTrainings(self, request, context):
        raise NotImplementedError

    def StartTraining(self, request, context):
        raise NotImplementedError

    def CancelTraining(self, request, context):
        self.actor = request.actor
        return pb.CancelTrainingResponse()


@pytest.fixture
def served(file, tmp_path) -> Iterator[tuple[str, Servicer]]:
    address, servicer = f"unix:{tmp_path / 'grpc.sock'}", Servicer()
    settings = Settings(
        data_dir=tmp_path,
        database_url="",
        grpc_address=address,
        metrics_address="127.0.0.1:0",
        callers_file=file,
    )
    server = GrpcServer(
        settings,
        [NAME],
        [lambda s: training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, s)],
    )
    server.start(Stopper())
    server.ready(True)
    yield address, servicer
    server.stop()


def test_a_server_answers_those_with_a_token(served):
    address, _ = served
    with channel(address, "ann's") as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
        assert len(list(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5))) == 2


@pytest.mark.parametrize(
    ("token", "code", "reason"),
    [
        ("", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("bob's", grpc.StatusCode.UNAUTHENTICATED, "TOKEN_UNKNOWN"),
        ("shop's", grpc.StatusCode.PERMISSION_DENIED, "CALLER_DENIED"),
    ],
)
def test_a_server_refuses_the_others_and_tells_everybody_its_health(served, token, code, reason):
    address, servicer = served
    with channel(address, token) as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        for ask in (
            lambda: stub.GetTraining(pb.GetTrainingRequest(), timeout=5),
            lambda: list(stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5)),
            lambda: stub.CancelTraining(pb.CancelTrainingRequest(actor="ann"), timeout=5),
        ):
            assert refusal(ask) == (code, reason)
        assert servicer.actor == ""
        health: Any = health_pb2_grpc.HealthStub(connection)
        answer = health.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_stream_ends_when_its_callers_token_is_taken_back(served, file, monkeypatch):
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.0)
    address, servicer = served
    servicer.between = lambda: file.write_text("callers: []\n")
    with channel(address, "ann's") as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        answers = stub.WatchTraining(pb.WatchTrainingRequest(), timeout=5)
        next(answers)
        assert refusal(lambda: next(answers)) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "TOKEN_UNKNOWN",
        )


def test_a_service_that_another_does_not_let_in_takes_it_for_an_outage(served):
    """Whoever asked it must not be told that its own token is wrong, and what waits must not be given up."""
    with channel(served[0], "bob's") as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        with pytest.raises(EverloopError, match="TOKEN_UNKNOWN") as caught:
            call(stub.GetTraining, pb.GetTrainingRequest(), timeout=5)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "SERVICE_REFUSED")


@pytest.mark.parametrize(
    ("said", "recorded"), [("", "ann"), ("ann", "ann"), ("bob", "ann for bob")]
)
def test_a_caller_cannot_pass_for_somebody_else(served, said, recorded):
    address, servicer = served
    with channel(address, "ann's") as connection:
        stub = training_pb2_grpc.TrainingServiceStub(connection)
        call(stub.CancelTraining, pb.CancelTrainingRequest(actor=said), timeout=5)
    assert servicer.actor == recorded
