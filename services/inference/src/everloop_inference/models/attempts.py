"""Loading versions that may not load: downloaded first, tried again with growing pauses, and said aloud."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from everloop_inference.domain import ServedModel, ServingPolicy, Wanted
from everloop_inference.metrics import LOAD_FAILURES
from everloop_inference.models.downloads import Downloads
from everloop_inference.models.load import Loader
from everloop_runtime.errors import EverloopError, waiting_mends

__all__ = ["Attempts"]

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0
REFUSALS = 2
"""Attempts that must show that a version cannot be loaded before that is told to others."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """The last attempt.

    Attributes:
        due: when the next one may be, on the clock of `time.monotonic`.
        pause: seconds after the next one, if it fails too.
        error: what went wrong.
        refusals: attempts so far, each with a download of its own, after which the version itself was at fault.
    """

    due: float
    pause: float
    error: Exception
    refusals: int


class Attempts:
    """Loads versions, and remembers those that failed."""

    def __init__(
        self,
        loader: Loader,
        policies: Mapping[str, ServingPolicy],
        retry_max_seconds: float,
        downloads: int,
        downloaded: Callable[[], None],
    ) -> None:
        """Takes what it works with.

        Args:
            loader: what loads.
            policies: what pipelines say about serving.
            retry_max_seconds: longest pause before another attempt.
            downloads: how many at once.
            downloaded: is called, by another thread, when a later `load` may find what an earlier one did not.
        """
        self._loader = loader
        self._downloads = Downloads(loader.fetch, downloads, downloaded)
        self._policies = policies
        self._retry_max = retry_max_seconds
        self._failed: dict[Wanted, _Failed] = {}

    def downloading(self, some: Collection[Wanted]) -> bool:
        """Whether a later `load` of one of some versions will find what an earlier one did not."""
        return any(self._downloads.asked(wanted) for wanted in some)

    def load(self, wanted: Wanted, meanwhile: str) -> ServedModel | None:
        """Returns the version; None if it is on its way, or cannot be loaded now.

        Args:
            wanted: the version.
            meanwhile: what goes on where it cannot, for the log.
        """
        before = self._failed.get(wanted)
        if before and time.monotonic() < before.due:
            return None
        is_fresh = self._downloads.asked(wanted)
        if not is_fresh and not self._loader.has(wanted):
            self._downloads.ask(wanted)
            return None
        began = time.monotonic()
        try:
            if is_fresh and not self._downloads.take(wanted):
                return None
            model = self._loader.load(wanted, self._policies.get(wanted.model, ServingPolicy()))
        except Exception as error:
            if not is_fresh and isinstance(error, EverloopError):
                what = (wanted.model, wanted.version)
                log.error("the cached artifact of %s version %d is damaged: %s", *what, error)
                self._downloads.ask(wanted)
                return None
            reason = error.reason if isinstance(error, EverloopError) else type(error).__name__
            LOAD_FAILURES.labels(wanted.model, reason).inc()
            log.error(
                "%s version %d cannot serve (%s), %s: %s",
                wanted.model,
                wanted.version,
                reason,
                meanwhile,
                error,
                exc_info=not isinstance(error, EverloopError),
            )
            pause = before.pause if before else FIRST_RETRY_SECONDS
            due = time.monotonic() + min(pause, self._retry_max)
            refusals = (before.refusals if before else 0) + _is_lasting(error)
            self._failed[wanted] = _Failed(due, min(pause * 2, self._retry_max), error, refusals)
            return None
        self._failed.pop(wanted, None)
        took = time.monotonic() - began
        log.info("%s version %d was loaded in %.2f s", wanted.model, wanted.version, took)
        return model

    def cached(self, wanted: Wanted) -> ServedModel | None:
        """Returns the version if this machine's disk has it; what it has not `load` downloads."""
        try:
            return self._loader.cached(wanted, self._policies.get(wanted.model, ServingPolicy()))
        except Exception as error:
            log.error(
                "%s version %d cannot serve from this machine's disk: %s",
                wanted.model,
                wanted.version,
                error,
                exc_info=not isinstance(error, EverloopError),
            )
            return None

    def lasting_failure(self, wanted: Wanted) -> str:
        """Why a version cannot be loaded; empty unless two downloads showed it and waiting does not mend it.

        What happens to one replica once, a damaged transfer or a lack of memory, is no reason to reject a version.
        """
        failed = self._failed.get(wanted)
        if failed is None or failed.refusals < REFUSALS or not _is_lasting(failed.error):
            return ""
        error = failed.error
        reason = error.reason if isinstance(error, EverloopError) else type(error).__name__
        return f"{reason}: {error}"

    def forget(self, keep: Collection[Wanted]) -> None:
        """Forgets what failed, but for the versions of `keep`."""
        self._failed = {wanted: item for wanted, item in self._failed.items() if wanted in keep}
        self._downloads.forget(keep)


def _is_lasting(error: Exception) -> bool:
    """Whether the version is at fault, as far as one attempt can tell."""
    return not isinstance(error, (MemoryError, OSError)) and not waiting_mends(error)
