"""Who watches what should serve is told when that changes, by whatever process changed it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.domain import ModelVersion, Rollout
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper

__all__ = ["ProductionWatch", "Served"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """What should serve: the versions in Production, and those on trial with their rollouts."""

    versions: Sequence[ModelVersion] = ()
    trials: Sequence[tuple[ModelVersion, Rollout]] = ()

    def of(self, model: str) -> Served:
        """What of it is a model's; all where the name is empty."""
        if not model:
            return self
        return Served(
            [version for version in self.versions if version.model == model],
            [trial for trial in self.trials if trial[0].model == model],
        )

    @property
    def names(self) -> frozenset[tuple[str, str]]:
        """What tells it from another; an etag that has changed does not."""
        return frozenset((version.model, str(version.version)) for version in self.versions).union(
            (rollout.model, rollout.id) for _, rollout in self.trials
        )


class ProductionWatch(Component):
    """Looks at the models' revisions, which every change advances, once for all who watch."""

    name = "production watch"

    def __init__(self, database: Database, every_seconds: float) -> None:
        """Takes the gateway's database and the time between two looks."""
        self._database = database
        self._every = every_seconds
        self._seen: object = None
        self._served = Served()
        self._looking = threading.Lock()
        self._watchers: set[threading.Event] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""

        def loop() -> None:
            reachable = True
            while not (stopper.stopping or self._closed):
                try:
                    self._look()
                    reachable = True
                except EverloopError as error:  # the database is away: it is asked again
                    if reachable:
                        log.warning("nobody is told of changes: %s", error)
                    reachable = False
                stopper.wait(self._every)

        self._thread = stopper.thread(self.name, loop)

    def stop(self) -> None:
        """Ends what watches, so that the server has nothing to wait for."""
        self._closed = True
        self._wake()
        if self._thread:
            self._thread.join(timeout=15)

    def changes(
        self, model: str, wake: threading.Event, active: Callable[[], bool]
    ) -> Iterator[Served]:
        """Yields what should serve, at once and whenever it changes, until this stops.

        Args:
            model: only what is its; all where empty.
            wake: whoever sets it lets `active` be asked.
            active: whether somebody still watches.

        Raises:
            EverloopError: kind unavailable: the database does not answer.
        """
        told: frozenset[tuple[str, str]] | None = None
        # What was seen last may be a moment old.
        self._look()
        with self._lock:
            self._watchers.add(wake)
        try:
            while True:
                wake.clear()
                if self._closed or not active():
                    return
                served = self._served.of(model)
                if served.names != told:
                    told = served.names
                    yield served
                wake.wait()
        finally:
            with self._lock:
                self._watchers.discard(wake)

    def _look(self) -> None:
        with self._looking:
            with self._database.read() as connection:
                seen = Store(connection).revisions()
                if seen == self._seen:
                    return
                served = Served(*RolloutStore(connection).served(""))
            self._seen, self._served = seen, served
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            for wake in self._watchers:
                wake.set()
