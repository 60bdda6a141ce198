"""Early warnings: what has changed in a chunk that is slow to fill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from everloop_contracts.pipeline import Pipeline
from everloop_monitor import metrics
from everloop_monitor.adapters.store import predictions, versions, warnings
from everloop_monitor.batches import read_rows
from everloop_monitor.domain import EarlyWarning
from everloop_monitor.ports import Detectors
from everloop_runtime.database import Database
from everloop_runtime.errors import EverloopError, waiting_mends

__all__ = ["Lookout"]

log = logging.getLogger(__name__)

_FEWEST_ROWS = 100
"""New rows that it takes for another look."""


class Lookout:
    """Looks at the open chunk of the version in Production, all of it anew each time: nothing is kept between looks."""

    def __init__(
        self,
        database: Database,
        pipelines: Mapping[str, Pipeline],
        detectors: Detectors,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes what is looked at with what."""
        self._database = database
        self._pipelines = pipelines
        self._detectors = detectors
        self._now = now
        self._seen: dict[str, tuple[int, int]] = {}

    def look(self) -> bool:
        """Looks at every pipeline's open chunk that has grown; returns False: the next look is as far away as this."""
        for pipeline in self._pipelines.values():
            try:
                self._look(pipeline)
            except EverloopError as error:
                if not waiting_mends(error):
                    log.warning("pipeline %s has no early warning: %s", pipeline.name, error)
        return False

    def _look(self, pipeline: Pipeline) -> None:
        with self._database.read() as connection:
            version, run_id = versions.serving(connection, pipeline.name)
            counted = predictions.stream(connection, pipeline.name, version, lock=False)
            rows = counted.rows - counted.chunk_start
            seen = self._seen.get(pipeline.name, (0, 0))
            grown = counted.rows - (seen[1] if seen[0] == version else counted.chunk_start)
            if not run_id or min(rows, grown) < _FEWEST_ROWS:
                return
            batches = predictions.of_rows(
                connection, pipeline.name, version, counted.chunk_start, rows
            )
        detector = self._detectors.fitted(pipeline, version, run_id)
        found = detector.changed(read_rows(pipeline, batches, counted.chunk_start, rows))
        self._seen[pipeline.name] = version, counted.rows
        for feature, count in sorted(found.items()):
            warning = EarlyWarning(
                pipeline.name, version, counted.chunks, feature, count, rows, self._now()
            )
            with self._database.unit_of_work() as work:
                new = warnings.add(work.connection, warning)
            if new:
                metrics.EARLY_WARNINGS.labels(pipeline.name, feature).inc()
                log.info("chunk %s, not yet full: %s", warning.chunk_id, warning)
