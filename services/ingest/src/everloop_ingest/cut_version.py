"""Cutting a dataset version: catch up with the topic, build the parts, publish them, announce them."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from everloop_contracts.pipeline import Pipeline
from everloop_ingest import metrics
from everloop_ingest.adapters.store.cuts import Change, Cuts
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.announce import announcement, check_announceable
from everloop_ingest.build_parts import INDEX, Base, BuildLimits, Built, build_parts
from everloop_ingest.catch_up import CatchUp
from everloop_ingest.checks import violations
from everloop_ingest.domain import Part, Rows, ShardsLost, State, Version
from everloop_ingest.parts import PartFiles, labels_key
from everloop_ingest.ports import Repositories, ShardFiles
from everloop_ingest.record_index import RecordIndex
from everloop_ingest.turns import Turns
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.leases import Lease
from everloop_runtime.telemetry import span

__all__ = ["CutVersion"]

log = logging.getLogger(__name__)

_KEYS_NAMED = 10
"""Lost shards that a version's error names; the log names all."""


class CutVersion:
    """The use case. One version of a pipeline is cut at a time; one that a crash left behind is finished first.

    Of several processes the one with the pipeline's lease cuts. What it writes to the database and to the repository
    is fenced by the lease's number, so that one that stood still and lost it changes nothing when it goes on.

    Every step may be repeated: the version and its shards are fixed by the transaction that begins it and the version
    before by the one that completed it, the same shards on the same parts give the same parts, and the repository
    takes the same ones any number of times. A version whose shards are lost fails, and what is left of them goes into
    the next one. A part that is lost holds more than what is new: its pipeline waits until it is there again.
    """

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        *,
        cuts: Cuts,
        versions: Versions,
        files: ShardFiles,
        repositories: Repositories,
        catch_up: CatchUp,
        turns: Turns,
        limits: BuildLimits,
    ) -> None:
        """Takes the pipelines by name and what the steps need."""
        self._pipelines = pipelines
        self._cuts = cuts
        self._versions = versions
        self._files = files
        self._repositories = repositories
        self._catch_up = catch_up
        self._turns = turns
        self._limits = limits

    def __call__(self, pipeline: Pipeline, request_id: str, seconds: float) -> Version:
        """Cuts from everything that was on the topic when this was called; waits for that at most `seconds`.

        Returns:
            The version, available or in quarantine. The same one for the same `request_id`; the newest where nothing is
            new.

        Raises:
            EverloopError: kind precondition, reason NO_RECORDS; kind deadline, reasons WRITER_BEHIND and CUT_RUNNING;
                kind exhausted, reason CUT_RUNNING, at once where too many callers wait; kind unavailable, with reason
                LEASE_LOST where this process stood still for so long that another one cuts now; kind exhausted,
                reasons TOO_MANY_PARTS and LFS_LIMIT_REACHED: more than a version may be.
                A version that was begun is finished later, by a repeat or by `finish`.
        """
        deadline = time.monotonic() + seconds
        known = self._versions.requested(pipeline.name, request_id)
        if known is not None and known.done:
            return known
        with self._turns.caller():
            if known is None or known.state is State.FAILED:
                self._catch_up(pipeline, max(0.0, deadline - time.monotonic()))
            return self.cut(pipeline, request_id, max(0.0, deadline - time.monotonic()))

    def cut(self, pipeline: Pipeline, request_id: str, seconds: float) -> Version:
        """Cuts from what is stored already; see `__call__` for the rest."""
        with self._turns.alone(pipeline.name, seconds) as lease:
            self._finish_all(lease)
            while True:  # a version that fails takes at least one shard out of the next
                now = datetime.now(UTC)
                version = self._cuts.begin(pipeline.name, request_id, now, lease)
                if version is None:
                    raise EverloopError(
                        Kind.PRECONDITION,
                        "NO_RECORDS",
                        f"{pipeline.name} has no accepted record yet",
                    )
                finished = self._finish(version, lease)
                if finished.state is not State.FAILED:
                    return finished

    def finish(self) -> None:
        """Finishes what a crash or an outage left behind, as far as it goes now, pipeline by pipeline."""
        for name in self._pipelines:
            try:
                if self._versions.cutting(name):
                    with self._turns.alone(name, 0.0) as lease:
                        self._finish_all(lease)
            except Exception as error:  # the others are not to wait for it
                if isinstance(error, EverloopError) and error.reason == "CUT_RUNNING":
                    continue  # who is cutting there has finished it first
                outage = isinstance(error, EverloopError)
                log.warning("a version of %s waits: %s", name, error, exc_info=not outage)

    def _finish_all(self, lease: Lease) -> None:
        for version in self._versions.cutting(lease.pipeline):
            self._finish(version, lease)

    def _finish(self, version: Version, lease: Lease) -> Version:
        """The version when it is done: available, in quarantine or failed. It goes on with its last record's trace."""
        if version.state is not State.CUTTING:
            return version
        trace = self._cuts.trace_of(version)
        name = f"cut {version.pipeline}/v{version.number}"
        with span(name, {"traceparent": trace} if trace else None):
            return self._build(version, lease)

    def _build(self, version: Version, lease: Lease) -> Version:
        began = time.monotonic()
        pipeline = self._pipelines[version.pipeline]
        repository = self._repositories[pipeline.name]
        self._limits.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="cut-", dir=self._limits.folder) as name:
            folder = Path(name)
            try:
                shards = self._files.fetch(self._cuts.shards_of(version), _new(folder, "shards"))
            except ShardsLost as error:
                return self._give_up(version, error.keys, lease)
            base = self._base(pipeline, folder)
            erased = self._cuts.erased(version)
            built = build_parts(
                pipeline, version.number, shards, base, _new(folder, "parts"), self._limits, erased
            )
            check_announceable(version, repository, built.parts)
            labels = self._keep_states(version, base, built)
            files = {item.part.md5: item.rows for item in built.added}
            file = repository.publish(version, built.parts, files, lambda: self._turns.check(lease))
        rows = Rows.of(built.parts)
        announced, so_far = self._cuts.profiles(pipeline.name)
        new = so_far.plus(built.profile)
        wrong = violations(pipeline.cut.checks, rows.rows, announced, new)
        state = State.QUARANTINED if wrong else State.AVAILABLE
        done = replace(version, state=state, rows=rows, file=file, error="; ".join(wrong))
        event = None if wrong else announcement(done, repository, built.parts)
        added = [item.part for item in built.added]
        profile = built.profile if wrong else announced.plus(new)
        change = Change(added, built.removed, labels, profile)
        self._cuts.complete(done, change, event, lease)
        if wrong:
            metrics.QUARANTINED.labels(pipeline.name).inc()
            log.warning("%s is in quarantine: %s", file.tag, done.error)
        base.index.keep(built.parts)
        seconds = time.monotonic() - began
        metrics.CUT_SECONDS.labels(pipeline.name).observe(seconds)
        metrics.CUT_PARTS.labels(pipeline.name).observe(len(added))
        log.info(
            "%s: %d rows in %d parts, %d of them new, in %.2f s",
            file.tag,
            rows.rows,
            len(built.parts),
            len(added),
            seconds,
        )
        return done

    def _base(self, pipeline: Pipeline, folder: Path) -> Base:
        """The version before, its files fetched as they are needed."""
        parts, labels = self._cuts.base(pipeline.name)

        def states(wanted: Sequence[Part]) -> list[Path]:
            return self._fetch([part.state for part in wanted], folder)

        def fetch(wanted: Sequence[Part]) -> list[PartFiles]:
            rows = self._repositories[pipeline.name].fetch(wanted, _new(folder, "base"))
            return [PartFiles(*item) for item in zip(wanted, rows, states(wanted), strict=True)]

        waiting = self._fetch([labels], folder)[0] if labels else None
        index = RecordIndex(self._limits.folder / INDEX / pipeline.name, states)
        return Base(parts, waiting, index, fetch)

    def _fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        """Copies what belongs to parts; without it the next version would order events wrongly."""
        try:
            return self._files.fetch(keys, _new(folder, "state"))
        except ShardsLost as error:
            named = ", ".join(error.keys[:_KEYS_NAMED])
            raise EverloopError(
                Kind.UNAVAILABLE,
                "PART_LOST",
                f"{len(error.keys)} states of parts are gone: {named}",
            ) from error

    def _keep_states(self, version: Version, base: Base, built: Built) -> str:
        """Stores what the next version needs of this one; returns the path of the labels that wait, if any do."""
        for item in built.added:
            self._files.put(item.part.state, item.state.read_bytes())
            base.index.take(item.part, item.state)
        if built.labels is None:
            return ""
        key = labels_key(self._pipelines[version.pipeline], version.number, built.labels)
        self._files.put(key, built.labels.read_bytes())
        return key

    def _give_up(self, version: Version, lost: Sequence[str], lease: Lease) -> Version:
        named = ", ".join(lost[:_KEYS_NAMED]) + (", …" if len(lost) > _KEYS_NAMED else "")
        text = f"the object store has lost {len(lost)} of {version.shards} shards: {named}"
        failed = replace(version, state=State.FAILED, error=text)
        self._cuts.fail(failed, lost, lease)
        metrics.LOST_SHARDS.labels(version.pipeline).inc(len(lost))
        log.error("%s/v%d failed, lost: %s", version.pipeline, version.number, ", ".join(lost))
        return failed


def _new(folder: Path, name: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder))
