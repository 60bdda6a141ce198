"""The thread that evaluates, and keeps the database within its bounds."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everloop_monitor.evaluate import Evaluator
from everloop_runtime.errors import EverloopError, waiting_mends
from everloop_runtime.service import Component, Stopper

__all__ = ["Chore", "Worker"]

log = logging.getLogger(__name__)

_IDLE_SECONDS = 1.0


@dataclass(frozen=True)
class Chore:
    """Something that is done every `seconds`, and again in the next turn while it returns True."""

    do: Callable[[], bool]
    seconds: float


class Worker(Component):
    """Evaluates whatever is due; sleeps until it is woken or a second has passed."""

    name = "evaluation worker"

    def __init__(
        self,
        evaluator: Evaluator,
        prepare: Callable[[], None],
        chores: Sequence[Chore],
    ) -> None:
        """Takes what to do.

        Args:
            evaluator: asked for its next step again and again.
            prepare: called once, on the thread, before anything is evaluated.
            chores: what else is done from time to time.
        """
        self._evaluator = evaluator
        self._prepare = prepare
        self._chores = {chore: 0.0 for chore in chores}
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
        # What is there now stays: looking through it takes as long as evaluating a chunk.
        gc.collect()
        gc.freeze()
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
        """Evaluates one chunk and does a little of each chore, as far as they are due; False if nothing was."""
        busy = self._evaluator.step()
        for chore, due in self._chores.items():
            if time.monotonic() < due:
                continue
            if chore.do():
                busy = True
            else:
                self._chores[chore] = time.monotonic() + chore.seconds
        return busy
