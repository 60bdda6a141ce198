"""The thread that runs trainings, one at a time, and goes on with what a crash cut off, here or elsewhere."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from everloop_contracts.events import TRAINER
from everloop_contracts.pipeline import Pipeline
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, waiting_mends
from everloop_runtime.events import new_event
from everloop_runtime.leases import LEASE_LOST, Lease, Leases
from everloop_runtime.service import Component, Stopper, backoff
from everloop_runtime.telemetry import span
from everloop_trainer.adapters import store
from everloop_trainer.domain import Cancelled, Progress, State, Trained, Training, TrainingError
from everloop_trainer.messages import failed_message, trained_message
from everloop_trainer.metrics import DURATION, TRAININGS, TRIALS
from everloop_trainer.train import Train
from everloop_trainer.trigger import next_to_run

__all__ = ["Turns", "Worker"]

log = logging.getLogger(__name__)

LONGEST_REST = 30.0
CHECK_SECONDS = 0.5
"""How often a training that runs looks whether it was cancelled."""
ELSEWHERE_SECONDS = 1.0
"""How often a pipeline that another trainer works on is looked at."""


@dataclass(frozen=True, slots=True)
class Turns:
    """How the trainers that share a database take turns at a pipeline.

    Attributes:
        holder: name of this trainer among them, the same after a restart.
        lease: how long the turn of one that was killed lasts; a living one extends it in time.
    """

    holder: str
    lease: timedelta


@dataclass(frozen=True, slots=True)
class _Rest:
    """A training that is not tried before `until`, after so many attempts in a row that came to nothing."""

    attempts: int
    until: float


class Worker(Component):
    """Runs queued trainings; the end of each and its announcement are one transaction.

    A training whose dependencies are away rests and is tried again for as long as that lasts, which costs none of its
    attempts. Other pipelines' trainings have their turn meanwhile.

    Of several trainers the one with a pipeline's lease works on it. What it writes is fenced by the lease's number: one
    that stood still and lost it stops its trials and announces nothing.
    """

    name = "worker"

    def __init__(
        self,
        database: Database,
        pipelines: Mapping[str, Pipeline],
        train: Train,
        leases: Leases,
        turns: Turns,
        *,
        attempts: int,
        retry_seconds: float,
    ) -> None:
        """Takes the use case, how trainers take turns, how often one may fail, and the pause after an attempt."""
        self._database = database
        self._pipelines = pipelines
        self._train = train
        self._leases = leases
        self._turns = turns
        self._attempts = attempts
        self._retry_seconds = retry_seconds
        self._woken = threading.Event()
        self._rests: dict[str, _Rest] = {}
        self._elsewhere: dict[str, float] = {}

    def wake(self) -> None:
        """Says that there may be work."""
        self._woken.set()

    def start(self, stopper: Stopper) -> None:
        """Starts the thread; what was running is taken up again."""
        self._stopper = stopper
        self._count()
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Waits for a thread that is idle; a running training is left to the next start."""
        self._woken.set()
        self._thread.join(timeout=2)

    def _run(self) -> None:
        while not self._stopper.stopping:
            self._woken.clear()
            if not self.step():
                self._woken.wait(5.0)

    def step(self) -> bool:
        """Runs one training to its end or to a failed attempt; False if there was none to run now."""
        now = time.monotonic()
        resting = {name for name, rest in self._rests.items() if rest.until > now}
        with self._database.read() as connection:
            waiting = store.waiting(connection)
        resting -= {item.id for item in waiting if item.cancel_time}
        resting |= {item.id for item in waiting if self._elsewhere.get(item.pipeline, now) > now}
        training = next_to_run(waiting, resting)
        if training is None:
            return False
        lease = self._leases.take_now(training.pipeline, self._turns.holder, self._turns.lease)
        if lease is None:
            self._elsewhere[training.pipeline] = now + ELSEWHERE_SECONDS
            return True
        with (
            span(f"training {training.pipeline}", training.trace),
            self._leases.kept(lease, self._turns.lease),
        ):
            try:
                # As it is now: another trainer may have ended it since it was looked at.
                with self._database.read() as connection:
                    current = store.by_id(connection, training.id)
                if current is not None and current.state in (State.QUEUED, State.RUNNING):
                    self._attempt(current, lease)
            except EverloopError as error:
                if error.reason != LEASE_LOST:
                    raise
                log.warning("training %s is left to another trainer: %s", training.id, error)
        self._count()
        return True

    def _attempt(self, training: Training, lease: Lease) -> None:
        if training.cancel_time:
            self._cancel(training, lease)  # before a crash or an outage had an end
            return
        pipeline = self._pipelines.get(training.pipeline)
        if pipeline is None:
            self._fail(training, lease, f"there is no pipeline '{training.pipeline}' any more")
            return
        if training.attempts >= self._attempts:
            tries = f"{training.attempts} attempts"
            self._fail(training, lease, f"given up after {tries}; the log has the causes")
            return
        with self._fenced(lease) as work:
            if not store.start(work.connection, training.id):
                return  # cancelled since it was looked at
        self._count()
        log.info("training %s starts, attempt %d", training.id, training.attempts + 1)
        began = time.monotonic()
        try:
            trained = self._train.run(
                pipeline,
                training,
                started=lambda run_id, trials: self._note_run(training, lease, run_id, trials),
                progress=lambda progress: self._note_progress(training, lease, progress),
                trial_ended=lambda family, failed: TRIALS.labels(
                    training.pipeline, family, "failed" if failed else "done"
                ).inc(),
                check=self._check(training, lease),
            )
        except Cancelled:
            self._cancel(training, lease)
        except TrainingError as error:
            self._fail(training, lease, str(error))
        except Exception as error:
            if isinstance(error, EverloopError) and error.reason == LEASE_LOST:
                raise
            if waiting_mends(error):
                with self._fenced(lease) as work:
                    store.take_back(work.connection, training.id)
                log.warning("training %s waits: %s", training.id, error)
                self._rest(training)
            elif training.attempts + 1 >= self._attempts:
                log.exception("training %s failed for good", training.id)
                self._fail(training, lease, f"{type(error).__name__}: {error}"[:2000])
            else:
                log.exception("training %s failed, it is tried again", training.id)
                self._rest(training)
        else:
            DURATION.labels(training.pipeline).observe(time.monotonic() - began)
            self._succeed(training, lease, trained)

    def _rest(self, training: Training) -> None:
        before = self._rests.get(training.id)
        attempts = before.attempts + 1 if before else 1
        seconds = backoff(attempts, self._retry_seconds, LONGEST_REST)
        self._rests[training.id] = _Rest(attempts, time.monotonic() + seconds)

    @contextmanager
    def _fenced(self, lease: Lease) -> Iterator[UnitOfWork]:
        """A transaction that another trainer cannot have come before."""
        with self._database.unit_of_work() as work:
            self._leases.hold(work, lease)
            yield work

    def _check(self, training: Training, lease: Lease) -> Callable[[], None]:
        """Makes what raises Cancelled once somebody has asked for it, or that the lease is lost.

        It looks every `CHECK_SECONDS`.
        """
        looked = 0.0

        def check() -> None:
            nonlocal looked
            if time.monotonic() - looked >= CHECK_SECONDS:
                looked = time.monotonic()
                self._leases.check(lease)
                if self._cancel_asked(training):
                    raise Cancelled

        return check

    def _cancel_asked(self, training: Training) -> bool:
        with self._database.read() as connection:
            now = store.by_id(connection, training.id)
        return now is not None and now.cancel_time is not None

    def _cancel_if_asked(self, training: Training, lease: Lease) -> None:
        if self._cancel_asked(training):
            self._cancel(training, lease)

    def _note_run(self, training: Training, lease: Lease, run_id: str, trials: int) -> None:
        with self._fenced(lease) as work:
            store.set_run(work.connection, training.id, run_id, trials)

    def _note_progress(self, training: Training, lease: Lease, progress: Progress) -> None:
        with self._fenced(lease) as work:
            store.set_progress(work.connection, training.id, progress)

    def _succeed(self, training: Training, lease: Lease, trained: Trained) -> None:
        message = trained_message(training, trained)
        # An id of its own: the announcement of a training is one event, however often it is made.
        event = new_event(
            TRAINER,
            training.pipeline,
            message,
            cause=training.cause_id,
            id=f"{training.id}:trained",
        )
        with self._fenced(lease) as work:
            ended = store.set_state(work.connection, [training.id], State.RUNNING, State.SUCCEEDED)
            if ended:
                work.publish(event)
        if not ended:
            self._cancel_if_asked(training, lease)  # while the model was logged
            return
        self._rests.pop(training.id, None)
        log.info("training %s gave %s: %s", training.id, trained.family, trained.metrics)

    def _fail(self, training: Training, lease: Lease, reason: str) -> None:
        self._leases.check(lease)  # the books are not in the transaction
        self._train.give_up(training)
        message = failed_message(training, reason)
        event = new_event(
            TRAINER, training.pipeline, message, cause=training.cause_id, id=f"{training.id}:failed"
        )
        with self._fenced(lease) as work:
            # It may not have been started: the pipeline is gone.
            ended = any(
                store.set_state(work.connection, [training.id], before, State.FAILED, reason)
                for before in (State.RUNNING, State.QUEUED)
            )
            if ended:
                work.publish(event)
        if not ended:
            self._cancel_if_asked(training, lease)
            return
        self._rests.pop(training.id, None)
        log.error("training %s failed: %s", training.id, reason)

    def _cancel(self, training: Training, lease: Lease) -> None:
        """Carries a cancellation out; one that a crash cuts off is carried out again."""
        self._leases.check(lease)
        self._train.cancel(training)
        with self._fenced(lease) as work:
            store.set_state(work.connection, [training.id], State.RUNNING, State.CANCELLED)
        self._rests.pop(training.id, None)
        log.info("training %s is cancelled", training.id)

    def _count(self) -> None:
        with self._database.read() as connection:
            counts = store.counts(connection)
        for pipeline in self._pipelines:
            for state in State:
                TRAININGS.labels(pipeline, state.value).set(counts.get((pipeline, state), 0))
