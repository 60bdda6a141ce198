"""Whose turn it is to cut a pipeline: of the threads of this process, and of the processes that share a database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.leases import Lease, Leases

__all__ = ["Turns"]

_POLL_SECONDS = 0.25


class Turns:
    """One turn for each pipeline. The threads of this process wait for a lock, the processes for a lease."""

    def __init__(
        self,
        pipelines: Collection[str],
        leases: Leases,
        *,
        holder: str,
        lasts: timedelta,
        callers: int,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        """Takes the pipelines' names and who of all processes cuts.

        Args:
            pipelines: their names.
            leases: in the database.
            holder: name of this process among those that share it, the same after a restart.
            lasts: how long the turn of a process that was killed lasts; a living one extends it in time.
            callers: calls in progress at most in this process, each of which holds a thread of the door for as long as
                its cut takes.
            wait: pauses between two looks at the database.
        """
        self._leases = leases
        self._holder = holder
        self._lasts = lasts
        self._wait = wait
        self._locks = {name: threading.Lock() for name in pipelines}
        self._callers = threading.BoundedSemaphore(callers)

    @contextmanager
    def caller(self) -> Iterator[None]:
        """Counts a call that waits for a version.

        Raises:
            EverloopError: kind exhausted, reason CUT_RUNNING, at once where too many do.
        """
        if not self._callers.acquire(blocking=False):
            raise EverloopError(
                Kind.EXHAUSTED,
                "CUT_RUNNING",
                "too many calls wait for a version; ask again later with the same request_id",
            )
        try:
            yield
        finally:
            self._callers.release()

    @contextmanager
    def alone(self, pipeline: str, seconds: float) -> Iterator[Lease]:
        """Waits at most so long for the turn of this thread and of this process, and keeps it.

        Raises:
            EverloopError: kind deadline, reason CUT_RUNNING; kind unavailable.
        """
        deadline = time.monotonic() + seconds
        if not self._locks[pipeline].acquire(timeout=seconds):
            raise _running(pipeline)
        try:
            while (lease := self._leases.take_now(pipeline, self._holder, self._lasts)) is None:
                if time.monotonic() >= deadline:
                    raise _running(pipeline)
                self._wait(_POLL_SECONDS)
            with self._leases.kept(lease, self._lasts):
                yield lease
        finally:
            self._locks[pipeline].release()

    def check(self, lease: Lease) -> None:
        """Returns where a turn is not over; see `Leases.check`."""
        self._leases.check(lease)


def _running(pipeline: str) -> EverloopError:
    return EverloopError(
        Kind.DEADLINE,
        "CUT_RUNNING",
        f"another version of {pipeline} is being cut; ask again with the same request_id",
    )
