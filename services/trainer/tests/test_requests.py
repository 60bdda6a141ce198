"""Events and calls become queued trainings, once each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2
from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2 as ingest_events
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2 as monitoring_events
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event
from everloop_trainer.adapters import store
from everloop_trainer.consumer import Handler
from everloop_trainer.domain import Cause, Dataset, State, Training
from everloop_trainer.request import Requests


class FakeCutter:
    """Cuts one version after another, the same one for the same request."""

    def __init__(self, make_dataset: Callable[..., Dataset]) -> None:
        self._make = make_dataset
        self.cut_for: dict[str, Dataset] = {}
        self.away = False

    def cut(self, pipeline: str, request_id: str) -> Dataset:
        if self.away:
            raise EverloopError(Kind.UNAVAILABLE, "UNAVAILABLE", "away")
        version = len(self.cut_for) + 10
        return self.cut_for.setdefault(request_id, self._make(version))


@pytest.fixture
def cutter(make_dataset: Callable[..., Dataset]) -> FakeCutter:
    return FakeCutter(make_dataset)


@pytest.fixture
def requests(
    database: Database, make_pipeline: Callable[..., Pipeline], cutter: FakeCutter
) -> Requests:
    return Requests(database, {"sales": make_pipeline()}, cutter, lambda: None)


def created(version: int, labelled_rows: int, event_id: str) -> Any:
    dataset = dataset_pb2.DatasetVersion(
        pipeline="sales", version=version, labelled_rows=labelled_rows
    )
    message = ingest_events.DatasetVersionCreated(dataset=dataset)
    return new_event("ingest", "sales", message, id=event_id)


def drifted(event_id: str, pipeline: str = "sales") -> Any:
    message = monitoring_events.RetrainRequested(pipeline=pipeline)
    return new_event("monitor", pipeline, message, id=event_id)


def trainings(database: Database) -> list[Training]:
    with database.read() as connection:
        return store.history(connection, "sales")


def test_replayed_events_change_nothing(database: Database, requests: Requests) -> None:
    handle = Handler(requests)
    events = [created(1, 99, "a"), created(2, 120, "b"), drifted("c"), created(10, 9999, "d")]
    for event in events:
        handle(event)
    before = trainings(database)
    assert [(item.cause, item.cause_id, item.state) for item in before] == [
        (Cause.FIRST_DATA, "b", State.SUPERSEDED),
        (Cause.DRIFT, "c", State.QUEUED),
    ]
    assert before[1].dataset.version == 10
    for event in events * 2:
        handle(event)
    assert trainings(database) == before


def test_a_request_is_not_settled_while_ingest_is_away(
    database: Database, requests: Requests, cutter: FakeCutter
) -> None:
    cutter.away = True
    with pytest.raises(EverloopError):
        Handler(requests)(drifted("c"))
    cutter.away = False
    Handler(requests)(drifted("c"))
    assert [item.cause_id for item in trainings(database)] == ["c"]


def test_pipelines_of_others_and_drift_that_is_not_wanted_are_left_alone(
    database: Database, make_pipeline: Callable[..., Pipeline], cutter: FakeCutter
) -> None:
    calm = make_pipeline(triggers={"on_drift": False})
    handle = Handler(Requests(database, {"sales": calm}, cutter, lambda: None))
    handle(drifted("a"))
    handle(drifted("b", pipeline="others"))
    assert trainings(database) == []


def test_starting_twice_with_one_request_id_gives_one_training(requests: Requests) -> None:
    first = requests.start("sales", "mine")
    assert requests.start("sales", "mine") == first
    assert requests.start("sales", "another").id != first.id


def test_starting_an_unknown_pipeline_is_not_found(requests: Requests) -> None:
    with pytest.raises(EverloopError) as caught:
        requests.start("nothing", "x")
    assert caught.value.kind is Kind.NOT_FOUND
