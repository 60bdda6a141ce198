"""Trainings run one at a time, survive crashes and are announced once."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import decode
from everloop_runtime.leases import Lease, Leases
from everloop_runtime.service import Stopper
from everloop_trainer.adapters import store
from everloop_trainer.domain import (
    Cause,
    Dataset,
    Progress,
    State,
    Trained,
    Training,
    TrainingError,
)
from everloop_trainer.worker import Turns, Worker

TRAINED = Trained("run", "runs:/run/model", "mlp", {"roc_auc": 0.7}, 0, {}, 1e-7, "aa", 3.0, 10, 2)


class Crash(BaseException):
    """kill -9: nothing after it runs."""


class FakeTrain:
    """Does what it is told, one item of `script` per attempt: an exception to raise, or None to succeed."""

    def __init__(self, *script: BaseException | None) -> None:
        self.script = list(script)
        self.seen: list[str] = []
        self.given_up: list[str] = []
        self.cancelled: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None
        self.asks = True

    def run(
        self,
        pipeline: Pipeline,
        training: Training,
        started: Any,
        progress: Any,
        trial_ended: Any,
        check: Any,
    ) -> Trained:
        self.seen.append(training.id)
        started("run", 6)
        progress(Progress(2, 0.7, "mlp"))
        trial_ended("mlp", False)
        self.meanwhile()
        if self.asks:
            check()
        if error := self.script.pop(0) if self.script else None:
            raise error
        return TRAINED

    def give_up(self, training: Training) -> None:
        self.given_up.append(training.id)

    def cancel(self, training: Training) -> None:
        self.cancelled.append(training.id)


@pytest.fixture
def make_worker(
    database: Database, make_pipeline: Callable[..., Pipeline]
) -> Callable[..., Worker]:
    def make(
        train: FakeTrain, retry_seconds: float = 0.0, holder: str = "one", lease: float = 30.0
    ) -> Worker:
        return Worker(
            database,
            dict.fromkeys(["sales", "stock"], make_pipeline()),
            train,  # type: ignore[arg-type]
            Leases(database, "training_leases"),
            Turns(holder, timedelta(seconds=lease)),
            attempts=3,
            retry_seconds=retry_seconds,
        )

    return make


def leased(worker: Worker) -> Lease:
    lease = worker._leases.take_now("sales", worker._turns.holder, worker._turns.lease)
    assert lease is not None
    return lease


def away() -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", "MLflow does not answer")


def queue(database: Database, dataset: Dataset, training_id: str = "t1") -> None:
    with database.unit_of_work() as work:
        store.add(work.connection, training_id, dataset, Cause.DRIFT, f"cause of {training_id}", {})


def get(database: Database, training_id: str = "t1") -> Training:
    with database.read() as connection:
        training = store.by_id(connection, training_id)
    assert training is not None
    return training


def announced(database: Database) -> list[Any]:
    return [
        decode(row.value, [(k, v.encode("latin-1")) for k, v in json.loads(row.headers)])
        for row in database.pending(100)
    ]


def test_a_training_ends_and_is_announced_together(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    worker = make_worker(FakeTrain())
    assert worker.step()
    assert not worker.step()
    done = get(database)
    assert (done.state, done.run_id, done.trials_total, done.attempts) == (
        State.SUCCEEDED,
        "run",
        6,
        1,
    )
    assert (done.trials_done, done.best_metric, done.best_family) == (2, 0.7, "mlp")
    assert done.start_time and done.end_time and done.start_time <= done.end_time
    [event] = announced(database)
    assert (event.id, event.cause) == ("t1:trained", "cause of t1")
    assert event.data.metrics == {"roc_auc": 0.7}
    assert event.data.dataset_tag == "sales/v1"


def test_a_crash_is_taken_up_before_anything_newer(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    with pytest.raises(Crash):
        make_worker(FakeTrain(Crash())).step()
    assert get(database).state is State.RUNNING
    queue(database, make_dataset(2), "t2")
    train = FakeTrain()
    worker = make_worker(train)
    assert worker.step() and worker.step()
    assert train.seen == ["t1", "t2"]
    assert [event.id for event in announced(database)] == ["t1:trained", "t2:trained"]


def test_a_failed_attempt_is_tried_again_and_then_given_up(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    train = FakeTrain(*[RuntimeError("a broken trial")] * 3)
    worker = make_worker(train)
    for _ in range(3):
        assert worker.step()
    assert not worker.step()
    failed = get(database)
    assert (failed.state, failed.attempts) == (State.FAILED, 3)
    assert "a broken trial" in failed.error
    assert train.given_up == ["t1"]
    [event] = announced(database)
    assert event.type.endswith("TrainingFailed")


def test_data_that_allows_no_model_is_not_tried_again(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    train = FakeTrain(TrainingError("one class"))
    assert make_worker(train).step()
    assert (get(database).state, get(database).error) == (State.FAILED, "one class")
    assert train.given_up == ["t1"]


def test_a_process_that_always_dies_does_not_try_for_ever(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    for _ in range(3):
        with pytest.raises(Crash):
            make_worker(FakeTrain(Crash())).step()
    assert make_worker(FakeTrain()).step()
    assert get(database).state is State.FAILED


@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE])
def test_an_outage_is_waited_for_however_long_and_costs_no_attempt(
    database: Database, make_worker: Any, make_dataset: Any, kind: Kind
) -> None:
    queue(database, make_dataset())
    train = FakeTrain(*[EverloopError(kind, "NOT_NOW", "ask again")] * 20)
    worker = make_worker(train)
    for _ in range(20):
        assert worker.step()
        assert (get(database).state, get(database).attempts) == (State.RUNNING, 0)
    assert worker.step()
    assert (get(database).state, get(database).attempts) == (State.SUCCEEDED, 1)
    assert train.given_up == []


def test_outages_between_failures_do_not_save_a_training_that_fails(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    broken = RuntimeError("broken")
    worker = make_worker(FakeTrain(broken, away(), broken, away(), broken))
    for _ in range(5):
        assert worker.step()
    assert (get(database).state, get(database).attempts) == (State.FAILED, 3)


def test_other_pipelines_train_while_one_waits_and_its_own_next_does_not(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    queue(database, make_dataset(2), "t2")
    queue(database, dataclasses.replace(make_dataset(), pipeline="stock"), "other")
    train = FakeTrain(away())
    worker = make_worker(train, retry_seconds=3600)
    assert worker.step() and worker.step()
    assert not worker.step()
    assert train.seen == ["t1", "other"]
    assert get(database, "other").state is State.SUCCEEDED
    assert get(database, "t2").state is State.QUEUED


def test_a_training_that_waits_does_not_hold_up_the_stop(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    stopper, train = Stopper(), FakeTrain(away())
    worker = make_worker(train, retry_seconds=3600)
    worker.start(stopper)
    deadline = time.monotonic() + 10
    while not train.seen:
        assert time.monotonic() < deadline
    stopper.stop()
    worker.stop()
    assert not worker._thread.is_alive()
    assert not stopper.failed


def cancel(database: Database, training_id: str = "t1") -> None:
    with database.unit_of_work() as work:
        store.cancel(work.connection, training_id, "cancelled by ann: too long")


def test_a_training_that_waits_is_cancelled_at_once_and_never_runs(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    cancel(database)
    gone = get(database)
    assert (gone.state, gone.error) == (State.CANCELLED, "cancelled by ann: too long")
    assert gone.end_time and gone.cancel_time
    train = FakeTrain()
    assert not make_worker(train).step()
    assert train.seen == []


@pytest.mark.parametrize("asks", [True, False], ids=["in the search", "while the model is logged"])
def test_a_training_that_runs_is_cancelled_is_not_announced_and_the_next_may_follow(
    database: Database, make_worker: Any, make_dataset: Any, asks: bool
) -> None:
    queue(database, make_dataset())
    train = FakeTrain()
    train.asks = asks
    train.meanwhile = lambda: cancel(database)
    worker = make_worker(train)
    assert worker.step()
    assert train.cancelled == ["t1"]
    gone = get(database)
    assert (gone.state, gone.error) == (State.CANCELLED, "cancelled by ann: too long")
    train.meanwhile = lambda: None
    queue(database, make_dataset(2), "t2")
    assert worker.step()
    assert get(database, "t2").state is State.SUCCEEDED
    assert [event.id for event in announced(database)] == ["t2:trained"]


class DyingTrain(FakeTrain):
    """Is killed while it carries a cancellation out, after the books have it."""

    def cancel(self, training: Training) -> None:
        super().cancel(training)
        raise Crash


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "half carried out"])
def test_a_cancellation_survives_a_crash(
    database: Database, make_worker: Any, make_dataset: Any, seen: bool
) -> None:
    queue(database, make_dataset())
    dying = DyingTrain(Crash())
    dying.meanwhile = lambda: cancel(database)
    dying.asks = seen
    with pytest.raises(Crash):
        make_worker(dying).step()
    assert dying.cancelled == (["t1"] if seen else [])
    assert get(database).state is State.RUNNING
    train = FakeTrain()
    assert make_worker(train).step()
    assert (train.seen, train.cancelled) == ([], ["t1"])
    assert get(database).state is State.CANCELLED
    assert announced(database) == []


def test_a_training_that_waits_for_an_outage_is_cancelled_without_waiting(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    train = FakeTrain(away())
    worker = make_worker(train, retry_seconds=3600)
    assert worker.step() and not worker.step()
    cancel(database)
    assert worker.step()
    assert get(database).state is State.CANCELLED


def test_one_cancelled_between_look_and_start_does_not_start(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    seen = get(database)
    cancel(database)
    train = FakeTrain()
    worker = make_worker(train)
    worker._attempt(seen, leased(worker))
    assert train.seen == []
    assert get(database).state is State.CANCELLED


def test_two_trainers_do_not_train_one_pipeline_and_the_other_goes_on_where_one_was_killed(
    database: Database, make_worker: Any, make_dataset: Any
) -> None:
    queue(database, make_dataset())
    queue(database, dataclasses.replace(make_dataset(), pipeline="stock"), "other")
    one, train = FakeTrain(Crash()), FakeTrain()
    two = make_worker(train, holder="two")

    def meanwhile() -> None:
        assert two.step() and two.step()  # looks, and takes the other pipeline's
        assert not two.step()

    one.meanwhile = meanwhile
    with pytest.raises(Crash):
        make_worker(one, lease=1.0).step()
    assert (one.seen, train.seen) == (["t1"], ["other"])
    deadline = time.monotonic() + 10
    while not (two.step() and "t1" in train.seen):
        assert time.monotonic() < deadline
    assert get(database).state is State.SUCCEEDED
    assert [event.id for event in announced(database)] == ["other:trained", "t1:trained"]


@pytest.mark.parametrize("asks", [True, False], ids=["in the search", "while the model is logged"])
def test_a_trainer_that_stood_still_and_lost_its_turn_stops_and_announces_nothing(
    database: Database, make_worker: Any, make_dataset: Any, asks: bool
) -> None:
    queue(database, make_dataset())
    slow, other = FakeTrain(), FakeTrain()
    one, two = make_worker(slow), make_worker(other, holder="two")
    slow.asks = asks

    def overtaken() -> None:
        past = datetime.now(UTC) - timedelta(seconds=1)
        one._leases.take("sales", "one", past, past)  # nobody extends this one
        assert two.step()

    slow.meanwhile = overtaken
    assert one.step()
    assert (slow.seen, other.seen) == (["t1"], ["t1"])
    assert (get(database).state, get(database).attempts) == (State.SUCCEEDED, 2)
    assert [event.id for event in announced(database)] == ["t1:trained"]
    assert slow.given_up == slow.cancelled == []
