"""Cuts by rows and by age, finishes what a crash left behind, drops what is no more needed, and forgets what is old."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.compact_shards import CompactShards
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.dead_letters import DeadLetters
from everloop_ingest.domain import Unversioned
from everloop_ingest.reclaim import Reclaim
from everloop_ingest.sweep_orphans import SweepOrphans
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper

__all__ = ["Chores", "Retention", "Scheduler", "due"]

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


@dataclass(frozen=True, slots=True)
class Chores:
    """What is done beside cutting; each does a bounded part of what there is to do."""

    compact: CompactShards
    reclaim: Reclaim
    sweep: SweepOrphans
    requests: Requests
    dead_letters: DeadLetters


@dataclass(frozen=True, slots=True)
class Retention:
    """How long things stay.

    Attributes:
        replaced: objects that a version has replaced.
        orphans: objects that no row names, and the time between two looks for them.
        requests: requests and their answers.
        dead_letters: what was rejected.
    """

    replaced: timedelta
    orphans: timedelta
    requests: timedelta
    dead_letters: timedelta


class Scheduler(Component):
    """Looks at every pipeline now and then."""

    name = "version scheduler"

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        *,
        cuts: Cuts,
        versions: Versions,
        cut: CutVersion,
        chores: Chores,
        retention: Retention,
        seconds: float,
    ) -> None:
        """Takes the pipelines by name, the database, the use cases, and the `seconds` between two looks."""
        self._pipelines = pipelines
        self._cuts = cuts
        self._versions = versions
        self._cut = cut
        self._chores = chores
        self._retention = retention
        self._seconds = seconds
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
                    self.tidy(pipeline.name, datetime.now(UTC))
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

    def tidy(self, pipeline: str, now: datetime) -> None:
        """Keeps what the data bucket holds of a pipeline small."""
        self._chores.compact(pipeline)
        self._chores.reclaim(pipeline, now - self._retention.replaced)

    def sweep(self, now: datetime) -> None:
        """Looks for orphans of all pipelines, if it is time."""
        if now < self._next_sweep:
            return
        for name in self._pipelines:
            self._chores.sweep(name, now - self._retention.orphans)
        self._next_sweep = now + self._retention.orphans

    def forget(self, now: datetime) -> None:
        """Forgets requests and dead letters that are past their time, as many as go at once."""
        self._chores.requests.forget(now - self._retention.requests, _FORGOTTEN_AT_ONCE)
        self._chores.dead_letters.expire(now - self._retention.dead_letters)

    def _failed(self, what: str, error: Exception) -> None:
        """The next look tries again: a pipeline that fails must not stop the others."""
        log.warning("%s: %s", what, error, exc_info=not isinstance(error, EverloopError))
