"""Deleting what versions have replaced: shards whose rows are in parts, and what only earlier versions need."""

from __future__ import annotations

from datetime import datetime

from everloop_ingest import metrics
from everloop_ingest.adapters.store.upkeep import Upkeep
from everloop_ingest.ports import ShardFiles

__all__ = ["Reclaim"]


class Reclaim:
    """The use case; may be repeated after a crash."""

    def __init__(self, upkeep: Upkeep, files: ShardFiles, objects: int) -> None:
        """Takes the database, the data bucket, and how many objects of each kind a call deletes at most."""
        self._upkeep = upkeep
        self._files = files
        self._objects = objects

    def __call__(self, pipeline: str, before: datetime) -> int:
        """Deletes some of what versions from before a moment have replaced; returns how many objects.

        Raises:
            EverloopError: kind unavailable.
        """
        gone = self._upkeep.reclaimable(pipeline, before, self._objects)
        if gone:
            self._files.delete([*gone.shards, *gone.states, *gone.labels])
            self._upkeep.reclaimed(pipeline, gone)
            metrics.RECLAIMED.labels(pipeline).inc(len(gone))
        return len(gone)

    def everything(self, pipeline: str, before: datetime) -> None:
        """Deletes all of it; raises as a call does."""
        while self(pipeline, before):
            pass
