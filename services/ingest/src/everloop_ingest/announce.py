"""The event that says that a dataset version is there."""

from __future__ import annotations

from collections.abc import Sequence

from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2
from everloop_ingest.convert import dataset_version
from everloop_ingest.domain import Part, Version
from everloop_ingest.ports import DataRepository
from everloop_ingest.settle import SOURCE
from everloop_runtime.events import Event, new_event

__all__ = ["announcement"]


def announcement(version: Version, repository: DataRepository, parts: Sequence[Part]) -> Event:
    """DatasetVersionCreated of a version; its cause is what the version was cut for."""
    data = events_pb2.DatasetVersionCreated(dataset=dataset_version(version, repository, parts))
    return new_event(SOURCE, version.pipeline, data, cause=version.cause_id)
