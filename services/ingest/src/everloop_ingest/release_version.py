"""Releasing a version from quarantine: a person takes it as it is, and it is announced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from everloop_ingest.adapters.store.quarantine import Quarantine
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.announce import announcement
from everloop_ingest.domain import Audit, State, Version
from everloop_ingest.ports import Repositories
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["ReleaseVersion"]


class ReleaseVersion:
    """The use case."""

    def __init__(
        self,
        versions: Versions,
        quarantine: Quarantine,
        repositories: Repositories,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes the database and the data repositories."""
        self._versions = versions
        self._quarantine = quarantine
        self._repositories = repositories
        self._now = now

    def __call__(
        self, pipeline: str, number: int, request_id: str, actor: str, reason: str
    ) -> Version:
        """Makes a version available that is in quarantine, announces it and notes who did it and why.

        A repeated `request_id` returns the first answer.

        Raises:
            EverloopError: kind not_found; kind precondition, reason NOT_QUARANTINED, or SUPERSEDED where a later
                version, which holds all that it holds, was announced already; kind conflict, reason
                REQUEST_ID_REUSED: the request has released another version or erased records, and releases nothing.
        """
        version = self._versions.get(pipeline, number) if number else None
        if version is None:
            raise EverloopError(
                Kind.NOT_FOUND, "DATASET_VERSION_NOT_FOUND", f"{pipeline} has no v{number}"
            )
        done = replace(version, state=State.AVAILABLE, error="")
        event = announcement(done, self._repositories[pipeline], self._versions.parts(version))
        audit = Audit(pipeline, request_id, number, "RELEASED", actor, reason, self._now())
        self._quarantine.release(done, audit, event)
        return done
