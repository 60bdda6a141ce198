"""Events and calls become queued trainings, once each."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
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
from everloop_trainer.ports import QUARANTINED
from everloop_trainer.request import Requests

KEEP = timedelta(days=1)


class FakeCutter:
    """Cuts one version after another, the same one for the same request."""

    def __init__(self, make_dataset: Callable[..., Dataset]) -> None:
        self._make = make_dataset
        self.cut_for: dict[str, Dataset] = {}
        self.away = False
        self.quarantine = False
        self.before_answer: Callable[[str, Dataset], None] = lambda request_id, dataset: None

    def cut(self, pipeline: str, request_id: str) -> Dataset:
        if self.away:
            raise EverloopError(Kind.UNAVAILABLE, "UNAVAILABLE", "away")
        version = len(self.cut_for) + 10
        dataset = self.cut_for.setdefault(request_id, self._make(version))
        if self.quarantine:
            raise EverloopError(Kind.PRECONDITION, QUARANTINED, "too few rows")
        self.before_answer(request_id, dataset)
        return dataset


@pytest.fixture
def cutter(make_dataset: Callable[..., Dataset]) -> FakeCutter:
    return FakeCutter(make_dataset)


@pytest.fixture
def requests(
    database: Database, make_pipeline: Callable[..., Pipeline], cutter: FakeCutter
) -> Requests:
    return Requests(database, {"sales": make_pipeline()}, cutter, lambda: None, KEEP)


def created(version: int, labelled_rows: int, event_id: str, cause: str = "") -> Any:
    dataset = dataset_pb2.DatasetVersion(
        pipeline="sales", version=version, labelled_rows=labelled_rows
    )
    message = ingest_events.DatasetVersionCreated(dataset=dataset)
    return new_event("ingest", "sales", message, id=event_id, cause=cause)


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


def test_a_version_in_quarantine_trains_once_it_is_released(
    database: Database, requests: Requests, cutter: FakeCutter
) -> None:
    cutter.quarantine = True
    with pytest.raises(EverloopError) as caught:
        requests.start("sales", "mine")
    assert caught.value.kind is Kind.PRECONDITION
    handle = Handler(requests)
    handle(drifted("c"))  # it is not handled again and again
    assert trainings(database) == []
    announce(handle, "c", cutter.cut_for["c"])
    assert [(item.cause, item.cause_id) for item in trainings(database)] == [(Cause.DRIFT, "c")]


def test_pipelines_of_others_and_drift_that_is_not_wanted_are_left_alone(
    database: Database, make_pipeline: Callable[..., Pipeline], cutter: FakeCutter
) -> None:
    calm = make_pipeline(triggers={"on_drift": False})
    handle = Handler(Requests(database, {"sales": calm}, cutter, lambda: None, KEEP))
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


def announce(handle: Handler, request_id: str, dataset: Dataset) -> None:
    """What ingest sends about a version that it cut for a request."""
    handle(created(dataset.version, 9999, f"created {dataset.version}", cause=request_id))


def test_a_version_cut_for_a_request_trains_once_when_its_announcement_comes_later(
    database: Database, requests: Requests, cutter: FakeCutter
) -> None:
    training = requests.start("sales", "mine")
    announce(Handler(requests), "mine", cutter.cut_for["mine"])
    assert trainings(database) == [training]
    assert (training.cause, training.cause_id) == (Cause.REQUEST, "mine")


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.SUCCEEDED])
def test_a_version_cut_for_a_request_trains_once_when_its_announcement_comes_first(
    database: Database, requests: Requests, cutter: FakeCutter, state: State
) -> None:
    def overtake(request_id: str, dataset: Dataset) -> None:
        announce(Handler(requests), request_id, dataset)
        (queued,) = trainings(database)
        with database.unit_of_work() as work:
            if state is not State.QUEUED:
                store.start(work.connection, queued.id)
            store.set_state(work.connection, [queued.id], State.RUNNING, state)

    cutter.before_answer = overtake
    training = requests.start("sales", "mine")
    assert trainings(database) == [training]
    assert (training.state, training.cause, training.cause_id) == (state, Cause.REQUEST, "mine")
    assert requests.start("sales", "mine") == training


def test_a_request_whose_answer_was_lost_trains_by_the_announcement(
    database: Database, requests: Requests, cutter: FakeCutter
) -> None:
    def crash(request_id: str, dataset: Dataset) -> None:
        raise ConnectionError

    cutter.before_answer = crash
    with pytest.raises(ConnectionError):
        Handler(requests)(drifted("drift"))
    announce(Handler(requests), "drift", cutter.cut_for["drift"])
    Handler(requests)(drifted("drift"))
    (training,) = trainings(database)
    assert (training.cause, training.cause_id) == (Cause.DRIFT, "drift")


def test_a_version_cut_for_somebody_else_trains_by_the_triggers(
    database: Database, requests: Requests
) -> None:
    Handler(requests)(created(1, 120, "a", cause="cut by hand"))
    assert [(t.cause, t.cause_id) for t in trainings(database)] == [(Cause.FIRST_DATA, "a")]


def test_a_version_that_starts_nothing_leaves_the_reason(
    requests: Requests, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    handle = Handler(requests)
    for version, rows in ((1, 99), (2, 120), (3, 130)):
        handle(created(version, rows, f"event-{version}"))
    why = [text for text in caplog.messages if "starts no training" in text]
    assert len(why) == 2
    assert why[0].endswith("99 labelled rows, the first training takes 100 (min_rows)")
    assert why[1].endswith("10 new labelled rows, another training takes 50 (new_rows)")


def test_requests_are_forgotten_in_time(database: Database) -> None:
    def noted(number: int) -> Cause | None:
        with database.read() as connection:
            return store.asked(connection, "sales", f"r{number}")

    for number in (1, 2, 2):
        with database.unit_of_work() as work:
            store.ask(work.connection, "sales", f"r{number}", Cause.REQUEST, KEEP)
    assert noted(1) is noted(2) is Cause.REQUEST
    with database.unit_of_work() as work:
        store.ask(work.connection, "sales", "r3", Cause.DRIFT, timedelta(0))
    assert (noted(1), noted(2), noted(3)) == (None, None, Cause.DRIFT)
