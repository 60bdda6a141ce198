"""Keeps the database within its bounds: the one place that deletes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from everloop_monitor import metrics
from everloop_monitor.adapters.store import (
    chunks,
    decisions,
    labels,
    predictions,
    versions,
    warnings,
)
from everloop_runtime.database import Database

__all__ = ["Bounds", "keep_within_bounds"]

# What one transaction deletes at most: SQLite has one writer, and what arrives waits for it.
_BATCHES_AT_ONCE = 100
_ROWS_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Bounds:
    """How much is kept per pipeline; see the settings of the same names."""

    retained_rows: int
    retained_labels: int
    retained_label_days: int
    waiting_chunks: int
    retained_chunks: int
    retained_decisions: int
    retained_versions: int


def keep_within_bounds(database: Database, bounds: Bounds, now: datetime) -> bool:
    """Deletes some of what is beyond the bounds, also of pipelines that are no longer declared.

    Returns:
        Whether there was anything: then there may be more, and the next call goes on.
    """
    with database.read() as connection:
        names = {
            *predictions.pipelines(connection),
            *labels.pipelines(connection),
            *versions.pipelines(connection),
        }
    return any([_trim(database, name, bounds, now) for name in sorted(names)])


def _trim(database: Database, pipeline: str, bounds: Bounds, now: datetime) -> bool:
    """Deletes at most one batch of each kind, each in a short transaction of its own."""
    deleted = {"predictions": _drop_predictions(database, pipeline, bounds.retained_rows)}
    with database.unit_of_work() as work:
        chunks.close_beyond(work.connection, pipeline, bounds.waiting_chunks)
        deleted["chunks"] = chunks.drop_oldest(
            work.connection, pipeline, bounds.retained_chunks, _ROWS_AT_ONCE
        )
        deleted["warnings"] = warnings.drop_oldest(
            work.connection, pipeline, bounds.retained_chunks, _ROWS_AT_ONCE
        )
    with database.read() as connection:  # counting millions must not hold the writer up
        surplus = labels.count(connection, pipeline) - bounds.retained_labels
    with database.unit_of_work() as work:
        before = now - timedelta(days=bounds.retained_label_days)
        deleted["labels"] = labels.drop_oldest(
            work.connection, pipeline, surplus, before, _ROWS_AT_ONCE
        )
    with database.unit_of_work() as work:
        deleted["decisions"] = decisions.drop_oldest(
            work.connection, pipeline, bounds.retained_decisions, _ROWS_AT_ONCE
        )
        deleted["versions"] = _forget_versions(work.connection, pipeline, bounds.retained_versions)
    for kind, count in deleted.items():
        metrics.DELETED.labels(kind).inc(count)
    return any(deleted.values())


def _drop_predictions(database: Database, pipeline: str, keep_rows: int) -> int:
    """Deletes the oldest predictions and closes the chunks that lose rows, in one transaction."""
    with database.unit_of_work() as work:
        rows, lost = predictions.drop_oldest(work.connection, pipeline, keep_rows, _BATCHES_AT_ONCE)
        unevaluated = sum(
            chunks.close_before(work.connection, pipeline, version, row)
            for version, row in lost.items()
        )
    if unevaluated:
        metrics.UNEVALUATED.labels(pipeline).inc(unevaluated)
    return rows


def _forget_versions(connection: sa.Connection, pipeline: str, keep: int) -> int:
    """Forgets old versions that do not serve and of which nothing is left; numbers of chunks may then come again."""
    seen = predictions.counted_versions(connection, pipeline) | versions.known(connection, pipeline)
    old = set(sorted(seen)[:-keep])
    if not old:
        return 0
    gone = (
        old
        - {versions.production(connection, pipeline)}
        - predictions.stored_versions(connection, pipeline)
        - chunks.versions(connection, pipeline)
        - decisions.versions(connection, pipeline)
    )
    predictions.forget_versions(connection, pipeline, gone)
    versions.forget(connection, pipeline, gone)
    return len(gone)
