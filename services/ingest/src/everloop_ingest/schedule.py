"""Cuts by rows and by age, finishes what a crash left behind, drops what is no more needed, and forgets what is old."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.domain import Unversioned
from everloop_ingest.keep_small import KeepSmall
from everloop_ingest.sweep_orphans import SweepOrphans
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper

__all__ = ["Scheduler", "due"]

log = logging.getLogger(__name__)

_FORGOTTEN_AT_ONCE = 10_000
"""Requests of each kind that one look forgets at most: a transaction that keeps the writer waiting only shortly."""


def due(pipeline: Pipeline, unversioned: Unversioned, now: datetime) -> str | None:
    """Why a version is due: `rows`, `age`, or None where it is not."""
    if unversioned.records >= pipeline.cut.rows:
        return "rows"
    if unversioned.since is not None and now - unversioned.since >= pipeline.cut.age:
        return "age"
    return None


class Scheduler(Component):
    """Looks at every pipeline now and then."""

    name = "version scheduler"

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        cuts: Cuts,
        versions: Versions,
        requests: Requests,
        cut: CutVersion,
        keep_small: KeepSmall,
        sweep: SweepOrphans,
        dead_letters: DeadLetters,
        seconds: float,
        retention: timedelta,
        letter_retention: timedelta,
        sweep_every: timedelta,
    ) -> None:
        """Takes the pipelines by name, the database and the use cases.

        `seconds` is the time between two looks, `retention` how long requests are remembered, `letter_retention` how
        long dead letters are kept, `sweep_every` the time between two looks for orphans.
        """
        self._pipelines = pipelines
        self._cuts = cuts
        self._versions = versions
        self._requests = requests
        self._cut = cut
        self._keep_small = keep_small
        self._seconds = seconds
        self._letters = dead_letters
        self._retention = retention
        self._letter_retention = letter_retention
        self._sweep = sweep
        self._sweep_every = sweep_every
        self._next_sweep = datetime.min.replace(tzinfo=UTC)

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Waits for the version in hand; what it cannot finish now is finished after the next start."""
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stopper.stopping:
            self._cut.finish()
            for pipeline in self._pipelines.values():
                try:
                    self.look(pipeline, datetime.now(UTC))
                    self._keep_small(pipeline.name, datetime.now(UTC))
                except Exception as error:
                    self._failed(pipeline.name, error)
            try:
                self.sweep(datetime.now(UTC))
                self.forget(datetime.now(UTC))
            except Exception as error:
                self._failed("orphans, old requests and dead letters", error)
            self._stopper.wait(self._seconds)

    def look(self, pipeline: Pipeline, now: datetime) -> None:
        """Cuts a version of a pipeline if one is due."""
        unversioned = self._cuts.unversioned(pipeline.name)
        why = due(pipeline, unversioned, now)
        if why is None and self._cuts.erasures_wait(pipeline.name):
            why = "erasure"
        if why is None or self._stopper.stopping:
            return
        newest = self._versions.page(pipeline.name, None, 1)
        number = newest[0].number + 1 if newest else 1
        try:
            self._cut.cut(pipeline, f"schedule/{why}/{pipeline.name}/v{number}", seconds=0)
        except EverloopError as error:
            # Labels that wait for their records are no fault, nor is somebody else's cut.
            if error.reason not in {"NO_RECORDS", "CUT_RUNNING"}:
                raise

    def sweep(self, now: datetime) -> None:
        """Looks for orphans of all pipelines, if it is time."""
        if now < self._next_sweep:
            return
        for name in self._pipelines:
            self._sweep(name, now)
        self._next_sweep = now + self._sweep_every

    def forget(self, now: datetime) -> None:
        """Forgets requests and dead letters that are past their time, as many as go at once."""
        self._requests.forget(now - self._retention, _FORGOTTEN_AT_ONCE)
        self._letters.expire(now - self._letter_retention)

    def _failed(self, what: str, error: Exception) -> None:
        """The next look tries again: a pipeline that fails must not stop the others."""
        log.warning("%s: %s", what, error, exc_info=not isinstance(error, EverloopError))
