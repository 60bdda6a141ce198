"""Keeps the inbox bounded."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError
from everloop_runtime.service import Component, Stopper

__all__ = ["InboxSweeper"]

log = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
BATCH = 1_000


class InboxSweeper(Component):
    """Forgets the ids of events that are too old to come again; for every service that consumes events."""

    name = "inbox sweeper"

    def __init__(self, database: Database, days: float) -> None:
        """Takes the service's database and the age at which an id goes (`ServiceSettings.inbox_retention_days`)."""
        self._database = database
        self._age = timedelta(days=days)

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Ends the thread after the batch in hand."""
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stopper.stopping:
            try:
                self.sweep()
            except EverloopError as error:
                log.warning("the inbox is swept later: %s", error)
            self._stopper.wait(EVERY_SECONDS)

    def sweep(self) -> None:
        """Drops what is too old, in batches, so that handlers have their turn in between."""
        before = datetime.now(UTC).replace(tzinfo=None) - self._age
        while self._database.forget(before, BATCH) == BATCH and not self._stopper.stopping:
            continue
