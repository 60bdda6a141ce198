"""Evaluates chunks, one step at a time: drift when a chunk is full, performance when its labels are here."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from everloop_contracts.pipeline import Pipeline
from everloop_monitor import metrics
from everloop_monitor.adapters.store import chunks, labels, predictions
from everloop_monitor.adapters.store.claims import claimed
from everloop_monitor.batches import read_rows
from everloop_monitor.conclude import conclude
from everloop_monitor.count_labels import LabelCounts
from everloop_monitor.detect import judge, judge_realised
from everloop_monitor.domain import Chunk, Rows
from everloop_monitor.ports import Detector, Detectors
from everloop_runtime.database import Database
from everloop_runtime.errors import waiting_mends
from everloop_runtime.telemetry import span

__all__ = ["Evaluator"]

log = logging.getLogger(__name__)

_AT_A_GLANCE = 8
"""Full chunks that are tried before a pipeline's turn is over: as many replicas may hold one each."""


class Evaluator:
    """Works off what the database says is due; used by one thread.

    The chunks' states are the queue: what was not committed when the process died is due again. Pipelines take turns,
    so that the flood of one does not starve another; replicas leave a chunk to the one that holds it.
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

        A model version whose evaluation failed is tried again after `retry_seconds`: for as long as waiting mends
        it, else until a chunk has failed `attempts` times.
        """
        self._database = database
        self._pipelines = pipelines
        self._detectors = detectors
        self._retry_seconds = retry_seconds
        self._attempts = attempts
        self._now = now
        self._counts = LabelCounts(database)
        self._retry_at: dict[tuple[str, int], float] = {}
        # Those whose turn is long ago come first.
        self._turns: dict[str, int] = dict.fromkeys(pipelines, 0)
        # Of chunks that failed and are still due, by position.
        self._failures: dict[int, int] = {}

    def step(self) -> bool:
        """Evaluates what has been due longest of the pipeline whose turn it is; False if nothing is due."""
        skip = self._failing()
        for name in sorted(self._pipelines, key=lambda name: self._turns[name]):
            if self._full(name, skip) or self._look_for_labels(name, skip):
                self._turns[name] = max(self._turns.values()) + 1
                return True
        return False

    def _full(self, pipeline: str, skip: list[tuple[str, int]]) -> bool:
        """Evaluates the oldest full chunk that no other replica holds; False if there is none."""
        with self._database.read() as connection:
            due = chunks.next_full(connection, pipeline, skip, _AT_A_GLANCE)
        return any(self._attempt(chunk, self._drift) for chunk in due)

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

    def show_lag(self) -> bool:
        """Sets the gauges of what waits; returns False: it is for its next time to show more."""
        for name in self._pipelines:
            with self._database.read() as connection:
                waiting, since = chunks.backlog(connection, name)
            metrics.WAITING.labels(name).set(waiting)
            late = (self._now() - since).total_seconds() if since else 0.0
            metrics.LAG_SECONDS.labels(name).set(max(late, 0.0))
        return False

    # What fails

    def _failing(self) -> list[tuple[str, int]]:
        """Pipelines and versions that are not tried again yet."""
        now = time.monotonic()
        self._retry_at = {key: at for key, at in self._retry_at.items() if at > now}
        return list(self._retry_at)

    def _attempt(self, chunk: Chunk, evaluate: Callable[[Chunk], None]) -> bool:
        """Evaluates, unless another replica does; a version that cannot be evaluated must not hold up the others."""
        with claimed(self._database, chunk.position) as mine:
            if mine:
                self._evaluate(chunk, evaluate)
        return mine

    def _evaluate(self, chunk: Chunk, evaluate: Callable[[Chunk], None]) -> None:
        try:
            with span("evaluate chunk", {"traceparent": chunk.trace} if chunk.trace else {}):
                evaluate(chunk)
        except Exception as error:
            metrics.FAILURES.labels(chunk.pipeline).inc()
            passing = waiting_mends(error)
            if not passing and self._give_up(chunk, error):
                return
            log.warning("chunk %s is tried again: %s", chunk.id, error, exc_info=not passing)
            self._retry_at[chunk.pipeline, chunk.version] = time.monotonic() + self._retry_seconds
        else:
            self._failures.pop(chunk.position, None)

    def _give_up(self, chunk: Chunk, error: Exception) -> bool:
        """Counts a failure that waiting does not mend; closes the chunk after the last, for those behind it."""
        failures = self._failures.pop(chunk.position, 0) + 1
        if failures < self._attempts:
            self._failures[chunk.position] = failures
            return False
        log.exception("chunk %s cannot be evaluated and is closed", chunk.id)
        with self._database.unit_of_work() as work:
            chunks.give_up(work.connection, chunk, f"{type(error).__name__}: {error}"[:500])
        if chunk.report is None:
            metrics.UNEVALUATED.labels(chunk.pipeline).inc()
        return True

    # Drift, when a chunk is full

    def _fitted(self, chunk: Chunk) -> Detector:
        return self._detectors.fitted(self._pipelines[chunk.pipeline], chunk.version, chunk.run_id)

    def _rows(self, chunk: Chunk) -> Rows:
        with self._database.read() as connection:
            batches = predictions.of_chunk(connection, chunk)
        return read_rows(self._pipelines[chunk.pipeline], batches, chunk.first_row, chunk.rows)

    def _drift(self, chunk: Chunk) -> None:
        with metrics.EVALUATE_SECONDS.labels("drift").time():
            detector = self._fitted(chunk)
            rows = self._rows(chunk)
            readings = detector.read(rows)
        rule = self._pipelines[chunk.pipeline].monitoring
        evaluated = replace(
            chunk,
            first_event=rows.first_event,
            last_event=rows.last_event,
            report=judge(rule, readings),
        )
        if self._conclude(evaluated, before=chunks.FULL, after=chunks.EVALUATED):
            metrics.show_drift(evaluated)
            metrics.count_alerts(chunk, evaluated)

    # Performance, when labels have come

    def _look_for_labels(self, pipeline: str, skip: list[tuple[str, int]]) -> bool:
        """Counts labels of waiting chunks; realises the first that has all it will get. False if none was due."""
        with self._database.read() as connection:
            events = labels.events(connection, pipeline)
            if not events:
                return False
            waiting = chunks.waiting_for_labels(connection, pipeline, events, skip)
        counted: dict[int, int] = {}
        closed: set[int] = set()
        ready = None
        for chunk in waiting:
            needed = math.ceil(self._pipelines[pipeline].monitoring.min_labelled * chunk.rows)
            labelled, possible = self._counts.count(chunk)
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
        if ready is None:
            return bool(waiting)
        return self._attempt(ready, self._realise) or bool(counted)

    def _realise(self, chunk: Chunk) -> None:
        assert chunk.report is not None, "a chunk waits for labels only after its evaluation"
        with metrics.EVALUATE_SECONDS.labels("realised").time():
            detector = self._fitted(chunk)
            rows = self._rows(chunk)
            with self._database.read() as connection:
                known = labels.known(connection, chunk.pipeline, rows.record_ids)
            actuals = [known.get(record) for record in rows.record_ids]
            readings = detector.realised(rows, actuals)
        rule = self._pipelines[chunk.pipeline].monitoring
        evaluated = replace(
            chunk,
            labelled_rows=sum(actual is not None for actual in actuals),
            report=judge_realised(rule, readings, chunk.report),
        )
        if self._conclude(evaluated, before=chunks.EVALUATED, after=chunks.CLOSED):
            metrics.show_realised(evaluated)
            metrics.count_alerts(chunk, evaluated)
        self._counts.forget(chunk)

    def _conclude(self, chunk: Chunk, *, before: str, after: str) -> bool:
        rule = self._pipelines[chunk.pipeline].monitoring
        now = self._now()
        chunk = replace(chunk, evaluated_at=now)
        return conclude(self._database, rule, chunk, before=before, after=after, now=now)
