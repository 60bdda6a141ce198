"""What is seen of running rollouts, by replicas and by the monitor, and what follows from it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.domain import GATEWAY, Rollout, RolloutReport, RolloutState
from everloop_registry_gateway.judge import Verdict, judge
from everloop_registry_gateway.promote import Promoter, find
from everloop_registry_gateway.rollout import find_rollout
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.service import Component, Stopper

__all__ = ["Observer", "RolloutJudge"]

log = logging.getLogger(__name__)

LONGEST_FAILURE = 500
"""Characters of a replica's failure that are kept: its log has the rest."""


class Observer:
    """Takes reports and alerts, and judges."""

    def __init__(
        self,
        database: Database,
        promoter: Promoter,
        replicas: int,
        fresh: timedelta = timedelta(seconds=10),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes what it works with.

        Args:
            database: the gateway's.
            promoter: what promotes.
            replicas: how many lives of replicas one rollout may count.
            fresh: age up to which a report says how a replica does now, and the time that all of them get to
                report to this process before a trial comes to its end.
            now: the clock.
        """
        self._database = database
        self._promoter = promoter
        self._replicas = replicas
        self._fresh = fresh
        self._now = now
        self._listening_since: datetime | None = None

    def report(self, report: RolloutReport) -> RolloutState:
        """Takes what a replica has seen, and aborts at once where its failure or its errors say so.

        Its totals replace those that it reported before; a repeat, a late report, and one about a rollout that has
        ended change nothing.

        Returns:
            Where the rollout stands then.

        Raises:
            EverloopError: kind not_found; kind exhausted, reason TOO_MANY_REPLICAS: its totals cannot be kept.
        """
        with self._database.unit_of_work() as work:
            rollouts = RolloutStore(work.connection)
            rollouts.lock(report.rollout_id)
            rollout = find_rollout(rollouts, report.rollout_id)
            last = rollouts.last_report(report.rollout_id, report.replica)
            late = last is not None and report.sequence <= last.sequence
            if rollout.state is not RolloutState.RUNNING or late:
                return rollout.state
            if last is None and not report.failure:
                self._check_room(rollouts, rollout)
            now = self._now()
            rollouts.set_report(report, now)
            # Not since the start: the door opens later, and replicas come back one after the other.
            self._listening_since = self._listening_since or now
            if report.failure:
                told = report.failure[:LONGEST_FAILURE]
                why = f"failure: replica {report.replica} cannot serve it: {told}"
                verdict = Verdict("abort", "failure", why)
            elif report.candidate.errors > (last.candidate.errors if last else 0):
                verdict = self._verdict(rollouts, find_rollout(rollouts, rollout.id))
            else:
                return rollout.state
            self._abort(work, rollout.id, verdict, cause_id=rollout.id)
            return find_rollout(rollouts, rollout.id).state

    def alert(self, event_id: str, model: str, version: int, measured: str) -> None:
        """Takes an alert of the monitor about a version's performance, once; aborts its rollout where the plan says so.

        Args:
            event_id: event that brought it.
            model: name of the model.
            version: version whose predictions it is about; mostly one that is not on trial.
            measured: the numbers, for a person.
        """
        with self._database.unit_of_work() as work:
            Store(work.connection).lock(model)
            if not work.first_time(event_id):
                return
            rollouts = RolloutStore(work.connection)
            for rollout in rollouts.running(model):
                if rollout.candidate_version == version:
                    verdict = self._verdict(rollouts, rollout, alert=measured)
                    self._abort(work, rollout.id, verdict, cause_id=event_id)

    def judge(self) -> None:
        """Judges every rollout that runs; one that cannot be settled now does not keep the others from it."""
        with self._database.read() as connection:
            rollouts = RolloutStore(connection)
            seen = [(rollout, self._verdict(rollouts, rollout)) for rollout in rollouts.running()]
        for rollout, verdict in seen:
            try:
                self._judge(rollout, verdict)
            except EverloopError as error:
                log.warning("the rollout of %s is judged again: %s", rollout.model, error)

    def _judge(self, seen: Rollout, verdict: Verdict) -> None:
        if verdict.action == "keep":
            return
        if verdict.action == "abort":
            with self._database.unit_of_work() as work:
                rollouts = RolloutStore(work.connection)
                rollouts.lock(seen.id)
                verdict = self._verdict(rollouts, find_rollout(rollouts, seen.id))
                self._abort(work, seen.id, verdict, cause_id=seen.id)
            return
        with self._promoter.turn(seen.model):
            # A promotion that was decided before a crash is finished here, and the rollout with it.
            self._promoter.settle(seen.model)
            changed = self._check_mlflow(seen)
            with self._database.unit_of_work() as work:
                rollouts = RolloutStore(work.connection)
                rollouts.lock(seen.id)
                rollout = find_rollout(rollouts, seen.id)
                pending = Store(work.connection).pending(seen.model)
                if changed:
                    failed = Verdict("abort", "failure", f"failure: {changed}")
                    self._abort(work, seen.id, failed, cause_id=seen.id)
                    return
                verdict = self._verdict(rollouts, rollout)
                if (
                    rollout.state is not RolloutState.RUNNING
                    or pending
                    or verdict.action != "promote"
                ):
                    return
                trial.promote(
                    work, rollout, actor=GATEWAY, reason=verdict.reason, cause_id=rollout.id
                )
            self._promoter.settle(seen.model)

    def _check_mlflow(self, rollout: Rollout) -> str:
        """Returns why the candidate's file may not serve; empty if it may.

        Raises where MLflow does not answer: between a decision and its end nothing could abort the rollout. A version
        that was deleted there passes: the promoter abandons its promotion, which ends the rollout.
        """
        with self._database.read() as connection:
            candidate = find(Store(connection), rollout.model, rollout.candidate_version)
        try:
            self._promoter.check(candidate)
        except EverloopError as error:
            if error.kind is Kind.PRECONDITION:
                return error.message
            if error.kind is not Kind.NOT_FOUND:
                raise
        return ""

    def _verdict(self, rollouts: RolloutStore, rollout: Rollout, alert: str = "") -> Verdict:
        age = self._now() - rollout.start_time
        heard = self._heard(rollouts, rollout)
        return judge(
            rollout.plan, rollout.candidate, rollout.baseline, age, alert=alert, heard=heard
        )

    def _heard(self, rollouts: RolloutStore, rollout: Rollout) -> bool:
        """True where a replica reports now and all of them had the time to.

        While the gateway is away reports are lost and trials bake on: what it finds in its database then says nothing
        of how the candidate does now. A replica that is gone for good holds nothing up; its last totals count.
        """
        since, last = self._listening_since, rollouts.heard(rollout.id)
        limit = self._now() - self._fresh
        return since is not None and since <= limit and last is not None and last >= limit

    def _abort(self, work: UnitOfWork, rollout_id: str, verdict: Verdict, *, cause_id: str) -> None:
        """Aborts a rollout that runs if the verdict says so."""
        rollout = find_rollout(RolloutStore(work.connection), rollout_id)
        if verdict.action != "abort" or rollout.state is not RolloutState.RUNNING:
            return
        trial.abort(
            work,
            rollout,
            verdict.cause,
            verdict.reason,
            actor=GATEWAY,
            cause_id=cause_id,
            now=self._now(),
        )

    def _check_room(self, rollouts: RolloutStore, rollout: Rollout) -> None:
        if rollouts.replicas(rollout.id) >= self._replicas:
            raise EverloopError(
                Kind.EXHAUSTED,
                "TOO_MANY_REPLICAS",
                f"rollout {rollout.id} counts {self._replicas} lives of replicas already",
                rollout=rollout.id,
            )


class RolloutJudge(Component):
    """Judges at start and then every so often."""

    name = "rollout judge"

    def __init__(self, observer: Observer, every_seconds: float) -> None:
        """Takes what judges, and how often it does."""
        self._observer = observer
        self._every = every_seconds
        self._thread: threading.Thread | None = None

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""

        def loop() -> None:
            while not stopper.stopping:
                try:
                    self._observer.judge()
                except EverloopError as error:
                    log.warning("rollouts are judged later: %s", error)
                stopper.wait(self._every)

        self._thread = stopper.thread(self.name, loop)

    def stop(self) -> None:
        """Ends the thread after the rollout in hand."""
        if self._thread:
            self._thread.join(timeout=15)
