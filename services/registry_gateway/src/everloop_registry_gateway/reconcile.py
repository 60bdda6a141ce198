"""The reconciler: finishes what a crash left half done and keeps MLflow's aliases what the database says."""

from __future__ import annotations

import logging
import threading
from datetime import timedelta

from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.promote import Promoter
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper

__all__ = ["Reconciler", "reconcile"]

log = logging.getLogger(__name__)


def reconcile(database: Database, promoter: Promoter) -> None:
    """Settles every model; one that cannot be settled now does not keep the others from it."""
    with database.read() as connection:
        models = Store(connection).models()
    for model in models:
        try:
            with promoter.turn(model):
                promoter.settle(model, repair=True)
        except EverloopError as error:
            log.warning("%s is not settled: %s", model, error)


class Reconciler(Component):
    """Reconciles at start and then every so often; MLflow may be away meanwhile."""

    name = "reconciler"

    def __init__(
        self,
        database: Database,
        promoter: Promoter,
        every_seconds: float,
        request_retention: timedelta,
    ) -> None:
        """Takes what to reconcile, how often, and for how long answers to requests are kept."""
        self._database = database
        self._promoter = promoter
        self._every = every_seconds
        self._retention = request_retention
        self._thread: threading.Thread | None = None

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""

        def loop() -> None:
            while not stopper.stopping:
                reconcile(self._database, self._promoter)
                with self._database.unit_of_work() as work:
                    Store(work.connection).forget(self._retention)
                stopper.wait(self._every)

        self._thread = stopper.thread(self.name, loop)

    def stop(self) -> None:
        """Ends the thread after the model in hand."""
        if self._thread:
            self._thread.join(timeout=15)
