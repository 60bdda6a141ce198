"""Erasing what is known of an entity: a version without its records, and nothing of them left in the data bucket."""

from __future__ import annotations

import hashlib
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pyarrow.parquet as pq

from everloop_contracts.pipeline import FieldType, Pipeline
from everloop_ingest.adapters.store.erasures import Erasures
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.cut_version import CutVersion
from everloop_ingest.domain import Audit, Version
from everloop_ingest.erase_letters import EraseLetters
from everloop_ingest.ports import Repositories
from everloop_ingest.reclaim import Reclaim
from everloop_ingest.request_ids import reused
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Entity", "EraseRecords"]


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose records: those with one of the ids, or those whose string field has a value."""

    record_ids: Sequence[str] = ()
    field: str = ""
    value: str = ""

    @property
    def digest(self) -> bytes:
        """Names the entity, in whatever order and however often its ids were given."""
        named = orjson.dumps([sorted({*self.record_ids}), self.field, self.value])
        return hashlib.sha256(named).digest()


class EraseRecords:
    """The use case. What it forgets is what had arrived when it was called; records that come later are new ones."""

    def __init__(
        self,
        *,
        versions: Versions,
        erasures: Erasures,
        repositories: Repositories,
        cut: CutVersion,
        reclaim: Reclaim,
        letters: EraseLetters,
        folder: Path,
    ) -> None:
        """Takes the database, the data repositories, the use cases that it is made of, and a folder for work."""
        self._versions = versions
        self._erasures = erasures
        self._repositories = repositories
        self._cut = cut
        self._reclaim = reclaim
        self._letters = letters
        self._folder = folder

    def __call__(
        self,
        pipeline: Pipeline,
        entity: Entity,
        request_id: str,
        actor: str,
        reason: str,
        seconds: float,
    ) -> Version:
        """Cuts a version without the entity's records and labels, and notes who asked for it and why.

        A first version takes in what has arrived and says which records the entity has, the second one is without
        them; the entity's dead letters go in between. A crash after the request was noted is made good by the
        scheduler, or by a repeat with the same `request_id`.

        Raises:
            EverloopError: kind invalid, reason INVALID_ENTITY; kind conflict, reason REQUEST_ID_REUSED: the request id
                has erased another entity, or cut or released a version, and nothing is erased; kind not_found, reason
                RECORDS_NOT_FOUND; and what CutVersion raises.
        """
        deadline = time.monotonic() + seconds
        _check(pipeline, entity)
        digest = entity.digest
        asked = self._erasures.asked(pipeline.name, request_id)
        if asked is None:
            self._check_new(pipeline.name, request_id)
            first = str(uuid.uuid5(uuid.NAMESPACE_URL, request_id))
            version = self._cut(pipeline, first, seconds)
            ids = list(entity.record_ids) or self._resolve(pipeline, version, entity)
            if not ids:
                raise EverloopError(
                    Kind.NOT_FOUND,
                    "RECORDS_NOT_FOUND",
                    f"no record of {pipeline.name} has this {entity.field}",
                )
            # Before the request is noted: who finishes it after a crash knows the ids no more.
            self._letters(pipeline, ids, entity.field, entity.value)
            entry = Audit(pipeline.name, request_id, 0, "ERASED", actor, reason, datetime.now(UTC))
            asked = self._erasures.ask(entry, ids, digest)
        if asked != digest:
            raise reused()
        left = max(0.0, deadline - time.monotonic())
        done = self._versions.requested(pipeline.name, request_id)
        if done is None or not done.done:
            done = self._cut.cut(pipeline, request_id, left)
        # All shards so far are in versions: those that hold the records go with the others.
        self._reclaim.everything(pipeline.name, datetime.now(UTC) + timedelta(days=1))
        return done

    def _check_new(self, pipeline: str, request_id: str) -> None:
        if self._erasures.audited(pipeline, request_id) or self._versions.requested(
            pipeline, request_id
        ):
            raise reused()

    def _resolve(self, pipeline: Pipeline, version: Version, entity: Entity) -> list[str]:
        """Ids of the version's records with the entity's value, part by part."""
        key = pipeline.schema_.id
        ids: list[str] = []
        self._folder.mkdir(parents=True, exist_ok=True)
        for part in self._versions.parts(version):
            with tempfile.TemporaryDirectory(prefix="erase-", dir=self._folder) as name:
                [path] = self._repositories[pipeline.name].fetch([part], Path(name))
                rows = pq.read_table(
                    path, columns=[key], filters=[(entity.field, "=", entity.value)]
                )
            ids += rows.column(key).to_pylist()
        return ids


def _check(pipeline: Pipeline, entity: Entity) -> None:
    spec = pipeline.schema_.fields.get(entity.field)
    if bool(entity.record_ids) == bool(entity.field):
        problem = "name record ids, or a field and its value"
    elif entity.field and (spec is None or spec.type is not FieldType.STRING):
        problem = f"{pipeline.name} has no string field {entity.field!r}"
    else:
        return
    raise EverloopError(Kind.INVALID, "INVALID_ENTITY", problem)
