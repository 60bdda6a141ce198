"""The thread that evaluates, and keeps the database within its bounds."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from everloop_monitor.evaluate import Evaluator
from everloop_runtime.errors import EverloopError, waiting_mends
from everloop_runtime.service import Component, Stopper

__all__ = ["Worker"]

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0


class Worker(Component):
    """Evaluates whatever is due; sleeps until it is woken or a second has passed."""

    name = "evaluation worker"

    def __init__(
        self,
        evaluator: Evaluator,
        prepare: Callable[[], None],
        maintain: Callable[[], bool],
        maintenance_seconds: float,
    ) -> None:
        """Takes what to do.

        Args:
            evaluator: asked for its next step again and again.
            prepare: called once, on the thread, before anything is evaluated.
            maintain: called every `maintenance_seconds`, and once more in the next turn while it returns True.
            maintenance_seconds: time between two rounds of maintenance.
        """
        self._evaluator = evaluator
        self._prepare = prepare
        self._maintain = maintain
        self._maintenance_seconds = maintenance_seconds
        self._maintain_at = 0.0
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
        self._patiently(self._evaluator.show)
        self._prepare()
        while not self._stopper.stopping:
            self._wake.clear()
            if not self._patiently(self._turn):
                self._wake.wait(_IDLE_SECONDS)

    def _patiently(self, do: Callable[[], bool | None]) -> bool:
        """Does it, unless the database is away: what is due then stays due."""
        try:
            return bool(do())
        except EverloopError as error:
            if not waiting_mends(error):
                raise
            log.warning("the worker waits: %s", error)
            return False

    def _turn(self) -> bool:
        """Evaluates one chunk and deletes a little, as far as either is due; False if neither was."""
        busy = self._evaluator.step()
        self._evaluator.show_lag()
        if time.monotonic() < self._maintain_at:
            return busy
        if self._maintain():
            return True
        self._maintain_at = time.monotonic() + self._maintenance_seconds
        return busy
