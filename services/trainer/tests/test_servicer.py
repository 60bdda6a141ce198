"""TrainingService over a real gRPC server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.training.v1 import training_pb2, training_pb2_grpc
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_trainer.adapters import store
from everloop_trainer.domain import Dataset, Progress, State
from everloop_trainer.request import Requests
from everloop_trainer.servicer import TrainingServicer


class FakeCutter:
    def __init__(self, make_dataset: Callable[..., Dataset]) -> None:
        self._make = make_dataset

    def cut(self, pipeline: str, request_id: str) -> Dataset:
        return self._make(1)


@pytest.fixture
def servicer(
    database: Database, make_pipeline: Callable[..., Pipeline], make_dataset: Callable[..., Dataset]
) -> TrainingServicer:
    pipelines = {"sales": make_pipeline()}
    requests = Requests(
        database, pipelines, FakeCutter(make_dataset), lambda: None, timedelta(days=1)
    )
    return TrainingServicer(database, requests)


@pytest.fixture
def stub(servicer: TrainingServicer) -> Iterator[training_pb2_grpc.TrainingServiceStub]:
    server = grpc.server(ThreadPoolExecutor(4))
    training_pb2_grpc.add_TrainingServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield training_pb2_grpc.TrainingServiceStub(channel)
    server.stop(0).wait()


def start(stub: Any, request_id: str) -> training_pb2.Training:
    request = training_pb2.StartTrainingRequest(pipeline="sales", request_id=request_id)
    training: training_pb2.Training = stub.StartTraining(request, timeout=10).training
    return training


def test_a_started_training_can_be_read_and_a_repeat_is_the_same(stub: Any) -> None:
    training = start(stub, "mine")
    assert training.state == training_pb2.Training.STATE_QUEUED
    assert training.cause == training_pb2.CAUSE_REQUEST
    assert training.cause_id == "mine"
    assert not training.HasField("start_time")
    assert start(stub, "mine") == training
    found = stub.GetTraining(training_pb2.GetTrainingRequest(id=training.id), timeout=10)
    assert found.training == training


def test_pages_list_every_training_once_newest_first(stub: Any) -> None:
    started = [start(stub, f"r{index}").id for index in range(5)]
    listed, token = [], ""
    while True:
        request = training_pb2.ListTrainingsRequest(pipeline="sales", page_size=2, page_token=token)
        answer = stub.ListTrainings(request, timeout=10)
        listed += [item.id for item in answer.trainings]
        token = answer.next_page_token
        if not token:
            break
    assert listed == started[::-1]


def test_watching_shows_changes_until_the_end(stub: Any, database: Database) -> None:
    training = start(stub, "mine")
    states = []
    for item in stub.WatchTraining(training_pb2.WatchTrainingRequest(id=training.id), timeout=20):
        states.append((item.training.state, item.training.trials_done))
        with database.unit_of_work() as work:
            if len(states) == 1:
                store.start(work.connection, training.id)
            elif len(states) == 2:
                store.set_progress(work.connection, training.id, Progress(3, 0.5, "mlp"))
            else:
                store.set_state(work.connection, [training.id], State.RUNNING, State.SUCCEEDED)
    message = training_pb2.Training
    assert states == [
        (message.STATE_QUEUED, 0),
        (message.STATE_RUNNING, 0),
        (message.STATE_RUNNING, 3),
        (message.STATE_SUCCEEDED, 3),
    ]


def cancel(stub: Any, training_id: str) -> training_pb2.Training:
    request = training_pb2.CancelTrainingRequest(id=training_id, actor="ann", reason="too long")
    training: training_pb2.Training = stub.CancelTraining(request, timeout=10).training
    return training


def test_a_cancelled_training_stays_so_however_often_it_is_asked_and_another_may_follow(
    stub: Any, database: Database
) -> None:
    training = start(stub, "mine")
    gone = cancel(stub, training.id)
    assert gone.state == training_pb2.Training.STATE_CANCELLED
    assert gone.error == "cancelled by ann: too long"
    assert cancel(stub, training.id) == gone
    assert start(stub, "mine") == gone  # the same request is the same training
    second = start(stub, "yours")
    assert second.state == training_pb2.Training.STATE_QUEUED
    with database.unit_of_work() as work:
        store.start(work.connection, second.id)
    running = cancel(stub, second.id)
    assert running.state == training_pb2.Training.STATE_RUNNING
    assert running.HasField("cancel_time")
    assert cancel(stub, second.id) == running


def test_what_has_ended_is_not_cancelled(servicer: TrainingServicer, database: Database) -> None:
    request = training_pb2.StartTrainingRequest(pipeline="sales", request_id="mine")
    training = servicer.StartTraining(request, None).training  # type: ignore[arg-type]
    with database.unit_of_work() as work:
        store.start(work.connection, training.id)
        store.set_state(work.connection, [training.id], State.RUNNING, State.SUCCEEDED)
    for training_id, kind in ((training.id, Kind.PRECONDITION), ("none", Kind.NOT_FOUND)):
        with pytest.raises(EverloopError) as caught:
            servicer.CancelTraining(training_pb2.CancelTrainingRequest(id=training_id), None)  # type: ignore[arg-type]
        assert caught.value.kind is kind


def test_an_unknown_training_is_not_found(servicer: TrainingServicer) -> None:
    request = training_pb2.GetTrainingRequest(id="none")
    with pytest.raises(EverloopError) as caught:
        servicer.GetTraining(request, None)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.NOT_FOUND


@pytest.mark.parametrize("request_fields", [{"page_size": -1}, {"page_token": "x"}])
def test_a_page_that_makes_no_sense_is_refused(
    servicer: TrainingServicer, request_fields: dict[str, Any]
) -> None:
    with pytest.raises(EverloopError) as caught:
        servicer.ListTrainings(training_pb2.ListTrainingsRequest(**request_fields), None)  # type: ignore[arg-type]
    assert caught.value.kind is Kind.INVALID
