"""Registry, artifact store and broker in memory, each of which can be away."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from everloop_inference.domain import Production, Trial, Wanted
from everloop_inference.fakes.sample import Artifact
from everloop_inference.ports import Message, Outcome, Report
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["MemoryArtifacts", "MemoryRegistry", "MemorySink"]


class MemoryRegistry:
    """A registry that says what it is told; `down` makes it unreachable.

    Attributes:
        reports: what replicas have told about trials, oldest first.
        looks: how often it was asked what should serve.
    """

    def __init__(self) -> None:
        """Names nothing."""
        self.down = False
        self.reports: list[Report] = []
        self.looks = 0
        self._versions: dict[str, Wanted] = {}
        self._trials: dict[str, Trial] = {}
        self._lock = threading.Lock()

    def promote(self, wanted: Wanted) -> None:
        """Puts a version into Production; a trial of its model has ended with that."""
        with self._lock:
            self._versions = {**self._versions, wanted.model: wanted}
            self._trials.pop(wanted.model, None)

    def begin(self, trial: Trial) -> None:
        """Puts a version on trial."""
        with self._lock:
            self._trials[trial.model] = trial

    def abort(self, model: str) -> None:
        """Ends the trial of a model."""
        with self._lock:
            self._trials.pop(model, None)

    def production(self) -> Production:
        """See `ports.Registry`."""
        self._check()
        with self._lock:
            self.looks += 1
            return Production(list(self._versions.values()), list(self._trials.values()))

    def changes(self) -> Iterator[None]:
        """See `ports.Registry`; it does not tell."""
        return iter(())

    def report(self, report: Report) -> bool:
        """See `ports.Registry`; a failure aborts the trial, as the gateway does."""
        self._check()
        with self._lock:
            self.reports.append(report)
            running = [trial for trial in self._trials.values() if trial.rollout == report.rollout]
            if report.failure and running:
                del self._trials[running[0].model]
                return False
            return bool(running)

    def close(self) -> None:
        """See `ports.Registry`."""

    def _check(self) -> None:
        if self.down:
            raise EverloopError(Kind.UNAVAILABLE, "UNAVAILABLE", "the registry is down")


class MemoryArtifacts:
    """An artifact store in memory; `down` makes it unreachable."""

    def __init__(self) -> None:
        """Holds nothing."""
        self.down = False
        self.downloads = 0
        self.runs: dict[str, Artifact] = {}

    def download(self, wanted: Wanted, folder: Path) -> None:
        """See `ports.Artifacts`."""
        if self.down or wanted.run_id not in self.runs:
            what = f"no run {wanted.run_id}"
            raise EverloopError(Kind.UNAVAILABLE, "ARTIFACT_UNAVAILABLE", what)
        self.downloads += 1
        self.runs[wanted.run_id].write(folder)


class MemorySink:
    """A broker in memory; `away` makes it refuse, `refuse_above` makes it reject large messages for good."""

    def __init__(self) -> None:
        """Holds nothing."""
        self.away = False
        self.refuse_above = 1 << 30
        self.messages: list[Message] = []
        self._lock = threading.Lock()

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See `ports.LogSink`."""
        return [self._one(message) for message in messages]

    def _one(self, message: Message) -> Outcome:
        with self._lock:
            if self.away:
                return Outcome.AWAY
            if len(message.value) > self.refuse_above:
                return Outcome.REFUSED
            self.messages.append(message)
            return Outcome.STORED

    def close(self) -> None:
        """See `ports.LogSink`."""
