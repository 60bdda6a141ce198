"""The thread that evaluates, and keeps the database within its bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime

from everloop_monitor.adapters.store import chunks, labels, predictions
from everloop_monitor.evaluate import Evaluator
from everloop_runtime.database import Database
from everloop_runtime.service import Component, Stopper

__all__ = ["Worker", "keep_within_bounds"]

_IDLE_SECONDS = 1.0


def keep_within_bounds(
    database: Database,
    pipelines: Collection[str],
    *,
    retained_rows: int,
    retained_actuals_days: int,
    waiting_chunks: int,
    now: datetime,
) -> None:
    """Deletes predictions and labels beyond what is retained, and closes chunks that wait too long for labels."""
    for pipeline in pipelines:
        with database.unit_of_work() as work:
            lost = predictions.drop_oldest(work.connection, pipeline, retained_rows)
            for version, row in lost.items():
                chunks.close_before(work.connection, pipeline, version, row)
            chunks.close_beyond(work.connection, pipeline, waiting_chunks)
    with database.unit_of_work() as work:
        labels.drop(work.connection, now, retained_actuals_days)


class Worker(Component):
    """Evaluates whatever is due; sleeps until it is woken or a second has passed."""

    name = "evaluation worker"

    def __init__(
        self,
        evaluator: Evaluator,
        prepare: Callable[[], None],
        maintain: Callable[[], None],
        maintenance_seconds: float,
    ) -> None:
        """Takes what to do: `prepare` once on the thread, `maintain` every `maintenance_seconds`."""
        self._evaluator = evaluator
        self._prepare = prepare
        self._maintain = maintain
        self._maintenance_seconds = maintenance_seconds
        self._wake = threading.Event()

    def wake(self) -> None:
        """Says that something may be due."""
        self._wake.set()

    def start(self, stopper: Stopper) -> None:
        """Starts the thread; the service is ready before the detectors are loaded."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Ends the thread after the chunk in hand; what is left is due at the next start."""
        self._wake.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        self._evaluator.show()
        self._prepare()
        maintained = float("-inf")
        while not self._stopper.stopping:
            self._wake.clear()
            busy = self._evaluator.step()
            self._evaluator.show_lag()
            if time.monotonic() - maintained > self._maintenance_seconds:
                self._maintain()
                maintained = time.monotonic()
            if not busy:
                self._wake.wait(_IDLE_SECONDS)
