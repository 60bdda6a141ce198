"""How a service lives: components start in order, serve, and stop in reverse."""

from __future__ import annotations

import logging
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

__all__ = ["Component", "Stopper", "backoff", "run"]

log = logging.getLogger(__name__)


class Stopper:
    """Tells everything in the process that it is time to stop, and watches its threads."""

    def __init__(self) -> None:
        """Nothing is stopping yet."""
        self._event = threading.Event()
        self.failed = False

    @property
    def stopping(self) -> bool:
        """True once the process is to stop."""
        return self._event.is_set()

    def stop(self, *, failed: bool = False) -> None:
        """Asks for the stop; `failed` makes the process end with status 1."""
        self.failed |= failed
        self._event.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the stop, at most `seconds`; returns whether it has come."""
        return self._event.wait(seconds)

    def thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Starts a thread whose failure stops the process: the supervisor then starts it afresh."""

        def watched() -> None:
            try:
                target()
            except Exception:
                log.exception("%s failed, the service stops", name)
                self.stop(failed=True)

        thread = threading.Thread(target=watched, name=name, daemon=True)
        thread.start()
        return thread


def backoff(attempt: int, first: float, longest: float) -> float:
    """Seconds to pause after the n-th failed attempt, counted from 1: twice as long each time, up to `longest`."""
    # An outage of hours makes thousands of attempts, and a power of that size fits no float.
    return min(first * 2.0 ** min(attempt - 1, 100), longest)


class Component(ABC):
    """A part of a service that runs: a server, a consumer, a relay."""

    name: str

    @abstractmethod
    def start(self, stopper: Stopper) -> None:
        """Starts; returns when it can serve. Long-lived threads come from `stopper.thread`."""

    @abstractmethod
    def stop(self) -> None:
        """Drains and ends; `stopper.stopping` is True by then."""


def run(
    components: Sequence[Component], on_ready: Callable[[bool], None] = lambda ready: None
) -> int:
    """Runs a service until SIGTERM, SIGINT or a failure; returns the exit status.

    Args:
        components: in the order of start; they stop in reverse.
        on_ready: told True when all have started and False before the first stops.
    """
    stopper = Stopper()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopper.stop())
    started: list[Component] = []
    try:
        for component in components:
            if stopper.stopping:
                break
            began = time.monotonic()
            component.start(stopper)
            started.append(component)
            log.info("%s started in %.2f s", component.name, time.monotonic() - began)
        else:
            on_ready(True)
            log.info("ready")
            stopper.wait()
    except Exception:
        log.exception("start failed")
        stopper.stop(failed=True)
    on_ready(False)
    for component in reversed(started):
        try:
            component.stop()
            log.info("%s stopped", component.name)
        except Exception:
            log.exception("%s did not stop cleanly", component.name)
            stopper.failed = True
    return 1 if stopper.failed else 0
