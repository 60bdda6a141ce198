"""Downloads of artifacts: a few at a time, beside the thread that reconciles."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future

from everloop_inference.domain import Wanted

__all__ = ["Downloads"]

log = logging.getLogger(__name__)


class Downloads:
    """Fetches versions in the order in which they were asked for; each is asked for again once it was taken.

    Its threads end when nothing waits, and with the process: a replica that stops does not wait for them.
    """

    def __init__(
        self, fetch: Callable[[Wanted], None], parallel: int, ended: Callable[[], None]
    ) -> None:
        """Takes what fetches a version, how many may be fetched at once, and who is told when one can be taken."""
        self._fetch = fetch
        self._ended = ended
        self._parallel = parallel
        self._lock = threading.Lock()
        self._asked: dict[Wanted, Future[None]] = {}
        self._waiting: deque[tuple[Wanted, Future[None]]] = deque()
        self._threads = 0

    def asked(self, wanted: Wanted) -> bool:
        """Whether a version was asked for and not taken."""
        return wanted in self._asked

    def ask(self, wanted: Wanted) -> None:
        """Lets a version be fetched."""
        future: Future[None] = Future()
        with self._lock:
            self._asked[wanted] = future
            self._waiting.append((wanted, future))
            if self._threads < self._parallel:
                self._threads += 1
                threading.Thread(target=self._work, name="download", daemon=True).start()

    def take(self, wanted: Wanted) -> bool:
        """Returns whether a version that was asked for has come; raises what `fetch` raised."""
        future = self._asked.get(wanted)
        if future is None or not future.done():
            return False
        del self._asked[wanted]
        future.result()
        return True

    def forget(self, keep: Collection[Wanted]) -> None:
        """Gives up what is not of `keep`; what is being fetched comes, and is nobody's."""
        for wanted in self._asked.keys() - set(keep):
            self._asked.pop(wanted).cancel()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                wanted, future = self._waiting.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            began = time.monotonic()
            try:
                self._fetch(wanted)
            except BaseException as error:
                future.set_exception(error)
                self._ended()
                continue
            took = time.monotonic() - began
            log.info("%s version %d was downloaded in %.2f s", wanted.model, wanted.version, took)
            future.set_result(None)
            self._ended()
