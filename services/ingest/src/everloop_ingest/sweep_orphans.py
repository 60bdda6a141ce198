"""Objects that nobody knows: stored just before a crash, so that no row of the database names them."""

from __future__ import annotations

import logging
from datetime import datetime
from itertools import islice

from everloop_ingest import metrics
from everloop_ingest.adapters.store.upkeep import Upkeep
from everloop_ingest.ports import ShardFiles

__all__ = ["SweepOrphans"]

log = logging.getLogger(__name__)

_KINDS = ("shards", "dead-letters", "parts", "labels")
"""Folders of a pipeline in the data bucket; whatever else is there is not ours."""
_ASKED_AT_ONCE = 500


class SweepOrphans:
    """The use case. A batch or a cut that comes again after a crash may store its rows under another path."""

    def __init__(self, upkeep: Upkeep, files: ShardFiles) -> None:
        """Takes the database and the data bucket."""
        self._upkeep = upkeep
        self._files = files

    def __call__(self, pipeline: str, before: datetime) -> None:
        """Deletes the orphans of a pipeline that were stored before a moment: later ones may be on their way to a row.

        Raises:
            EverloopError: kind unavailable.
        """
        for kind in _KINDS:
            # Listed first, looked up then: what gets its row meanwhile has it when it is looked up.
            old = iter(self._files.stored_before(f"{pipeline}/{kind}", before))
            while keys := list(islice(old, _ASKED_AT_ONCE)):
                orphans = self._upkeep.unnamed(pipeline, keys)
                self._files.delete(orphans)
                for key in orphans:
                    log.info("%s was named by no row and is deleted", key)
                metrics.ORPHANS.labels(pipeline).inc(len(orphans))
