"""Evaluates chunks, one step at a time: drift when a chunk is full, performance when its labels are here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2
from everloop_monitor import messages, metrics
from everloop_monitor.adapters.store import chunks, decisions, labels, predictions, versions
from everloop_monitor.batches import read_rows
from everloop_monitor.decide import decide
from everloop_monitor.detect import judge, judge_performance
from everloop_monitor.domain import (
    Chunk,
    Decision,
    Request,
    Rows,
    decision_id,
    drift_event_id,
)
from everloop_monitor.ports import Detector, Detectors
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event
from everloop_runtime.telemetry import span

__all__ = ["Evaluator"]

log = logging.getLogger(__name__)

SOURCE = "monitor"


class Evaluator:
    """Works off what the database says is due; used by one thread.

    The chunks' states are the queue: what was not committed when the process died is due again.
    """

    def __init__(
        self,
        database: Database,
        pipelines: Mapping[str, Pipeline],
        detectors: Detectors,
        *,
        retry_seconds: float,
        attempts: int = 5,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes what is evaluated with what.

        A failed model version is tried again after `retry_seconds`; a chunk that is itself at fault is tried
        `attempts` times.
        """
        self._database = database
        self._pipelines = pipelines
        self._detectors = detectors
        self._retry_seconds = retry_seconds
        self._attempts = attempts
        self._now = now
        self._retry_at: dict[tuple[str, int], float] = {}
        self._failures: dict[int, int] = {}
        # Record ids of waiting chunks that have no label yet: only these are looked up again.
        self._unlabelled: dict[int, list[str]] = {}

    def step(self) -> bool:
        """Evaluates what has been due longest; False if nothing is due."""
        skip = self._failing()
        with self._database.read() as connection:
            chunk = chunks.next_full(connection, self._pipelines.keys(), skip)
        if chunk is not None:
            self._attempt(chunk, self._drift)
            return True
        return any(self._labels(name, skip) for name in self._pipelines)

    def show(self) -> None:
        """Sets the gauges to the newest chunks, and the lag."""
        for name in self._pipelines:
            with self._database.read() as connection:
                drift = chunks.newest_with(connection, name, "drift")
                realised = chunks.newest_with(connection, name, "realised_performance")
            if drift is not None:
                metrics.show_drift(drift)
            if realised is not None:
                metrics.show_realised(realised)
        self.show_lag()

    def show_lag(self) -> None:
        """Sets the gauges of what waits."""
        for name in self._pipelines:
            with self._database.read() as connection:
                waiting, since = chunks.backlog(connection, name)
            metrics.WAITING.labels(name).set(waiting)
            late = (self._now() - since).total_seconds() if since else 0.0
            metrics.LAG_SECONDS.labels(name).set(max(late, 0.0))

    def _failing(self) -> list[tuple[str, int]]:
        now = time.monotonic()
        self._retry_at = {key: at for key, at in self._retry_at.items() if at > now}
        return list(self._retry_at)

    def _attempt(self, chunk: Chunk, evaluate: Callable[[Chunk], None]) -> None:
        try:
            with span("evaluate chunk", {"traceparent": chunk.trace} if chunk.trace else {}):
                evaluate(chunk)
        except Exception as error:
            # One version that cannot be evaluated must not hold up the others.
            metrics.FAILURES.labels(chunk.pipeline).inc()
            if not isinstance(error, EverloopError) and self._is_poison(chunk):
                return
            unavailable = isinstance(error, EverloopError) and error.kind is Kind.UNAVAILABLE
            log.warning("chunk %s is tried again: %s", chunk.id, error, exc_info=not unavailable)
            self._retry_at[chunk.pipeline, chunk.version] = time.monotonic() + self._retry_seconds
        else:
            self._failures.pop(chunk.position, None)

    def _is_poison(self, chunk: Chunk) -> bool:
        """Counts a failure that no outage explains; closes the chunk after the last attempt, for those behind it."""
        failures = self._failures.pop(chunk.position, 0) + 1
        if failures < self._attempts:
            self._failures[chunk.position] = failures
            return False
        log.exception("chunk %s cannot be evaluated and is closed", chunk.id)
        with self._database.unit_of_work() as work:
            chunks.close(work.connection, chunk)
        if chunk.report is None:
            metrics.UNEVALUATED.labels(chunk.pipeline).inc()
        return True

    def _fitted(self, chunk: Chunk) -> Detector:
        return self._detectors.fitted(self._pipelines[chunk.pipeline], chunk.version, chunk.run_id)

    def _rows(self, chunk: Chunk) -> Rows:
        with self._database.read() as connection:
            batches = predictions.of_chunk(connection, chunk)
        return read_rows(self._pipelines[chunk.pipeline], batches, chunk.first_row, chunk.rows)

    def _drift(self, chunk: Chunk) -> None:
        rule = self._pipelines[chunk.pipeline].monitoring
        with metrics.EVALUATE_SECONDS.labels("drift").time():
            detector = self._fitted(chunk)
            rows = self._rows(chunk)
            report = judge(rule, detector.read(rows), detector.reference)
        evaluated = replace(
            chunk,
            first_event=rows.first_event,
            last_event=rows.last_event,
            evaluated_at=self._now(),
            report=report,
        )
        self._conclude(evaluated, before=chunks.FULL, after=chunks.EVALUATED)

    def _labels(self, pipeline: str, skip: list[tuple[str, int]]) -> bool:
        """Counts labels of waiting chunks; realises the first that has all it will get. False if none was due."""
        with self._database.read() as connection:
            events = labels.events(connection, pipeline)
            waiting = chunks.waiting_for_labels(connection, pipeline, events, skip)
        counted: dict[int, int] = {}
        closed: set[int] = set()
        ready = None
        for chunk in waiting:
            needed = math.ceil(self._pipelines[pipeline].monitoring.min_labelled * chunk.rows)
            labelled, possible = self._count(chunk)
            # Complete, or at rest: labels came since the last look and none was for this chunk. A verdict on the part
            # that happened to be labelled first would depend on how fast labels travel.
            if labelled >= needed and labelled in (possible, chunk.labelled_rows):
                ready = chunk
                break
            counted[chunk.position] = labelled
            if possible < needed:
                closed.add(chunk.position)
        if counted:
            with self._database.unit_of_work() as work:
                chunks.set_checked(work.connection, counted, events, closed)
        if ready is not None:
            self._attempt(ready, self._realise)
        return bool(waiting)

    def _count(self, chunk: Chunk) -> tuple[int, int]:
        """Rows of a chunk that have a label, and rows that can ever have one."""
        missing = self._unlabelled.get(chunk.position)
        if missing is None:
            missing = self._rows(chunk).record_ids
            with self._database.read() as connection:
                waiting = chunks.waiting_positions(connection)
            # Chunks are also closed elsewhere, when they have waited too long or lost rows.
            self._unlabelled = {p: ids for p, ids in self._unlabelled.items() if p in waiting}
        with self._database.read() as connection:
            known = labels.known(connection, chunk.pipeline, missing)
        missing = [record for record in missing if record not in known]
        self._unlabelled[chunk.position] = missing
        nameless = missing.count("")
        return chunk.rows - len(missing), chunk.rows - nameless

    def _realise(self, chunk: Chunk) -> None:
        rule = self._pipelines[chunk.pipeline].monitoring
        with metrics.EVALUATE_SECONDS.labels("realised").time():
            detector = self._fitted(chunk)
            rows = self._rows(chunk)
            with self._database.read() as connection:
                known = labels.known(connection, chunk.pipeline, rows.record_ids)
            actuals = [known.get(record) for record in rows.record_ids]
            value = detector.realised(rows, actuals)
        assert chunk.report is not None, "a chunk waits for labels only after its evaluation"
        realised = judge_performance(rule.performance, value, detector.reference)
        evaluated = replace(
            chunk,
            labelled_rows=sum(actual is not None for actual in actuals),
            evaluated_at=self._now(),
            report=replace(chunk.report, realised=realised),
        )
        self._conclude(evaluated, before=chunks.EVALUATED, after=chunks.CLOSED)
        self._unlabelled.pop(chunk.position, None)

    def _conclude(self, chunk: Chunk, *, before: str, after: str) -> None:
        """Commits an evaluation: chunk, alert, decision and request together, or nothing of it."""
        announce = chunk.alert and not chunk.announced
        chunk = replace(chunk, announced=chunk.announced or announce)
        with self._database.unit_of_work() as work:
            if not chunks.save_evaluation(work.connection, chunk, before=before, after=after):
                return
            if announce:
                work.publish(
                    new_event(
                        SOURCE,
                        chunk.pipeline,
                        events_pb2.DriftDetected(chunk=messages.chunk(chunk)),
                        cause=chunk.cause,
                        id=drift_event_id(chunk.id),
                    )
                )
            decision = self._decide(work, chunk, occasion=after)
        if before == chunks.FULL:
            metrics.show_drift(chunk)
            if chunk.verdict("drift"):
                metrics.ALERTS.labels(chunk.pipeline, "drift").inc()
            if chunk.verdict("estimated_performance"):
                metrics.ALERTS.labels(chunk.pipeline, "estimated_performance").inc()
        else:
            metrics.show_realised(chunk)
            if chunk.verdict("realised_performance"):
                metrics.ALERTS.labels(chunk.pipeline, "realised_performance").inc()
        metrics.DECISIONS.labels(chunk.pipeline, decision.action).inc()
        log.info("chunk %s: %s: %s", chunk.id, decision.action, decision.reason)

    def _decide(self, work: UnitOfWork, chunk: Chunk, *, occasion: str) -> Decision:
        rule = self._pipelines[chunk.pipeline].monitoring.retrain
        now = self._now()
        production = versions.production(work.connection, chunk.pipeline)
        decision = decide(
            rule,
            chunk,
            {
                condition: chunks.recent(work.connection, chunk, condition, rule.of)
                for condition in rule.when
            },
            production=production,
            last=decisions.last_request(work.connection, chunk.pipeline),
            made=decisions.request_ids(work.connection, chunk.pipeline, chunk.version),
            now=now,
        )
        decisions.add(work.connection, chunk, decision_id(chunk.id, occasion), decision, now)
        if decision.action == "retrain":
            request = Request(
                decision.request_id, chunk.pipeline, chunk.version, chunk.id, decision.reason, now
            )
            decisions.add_request(work.connection, request)
            work.publish(
                new_event(
                    SOURCE,
                    chunk.pipeline,
                    messages.retrain_requested(request),
                    cause=drift_event_id(chunk.id) if chunk.announced else chunk.cause,
                    id=request.id,
                )
            )
        return decision
