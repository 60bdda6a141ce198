"""The event that says that a dataset version is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from everloop_contracts.stubs.everloop.ingest.v1 import events_pb2
from everloop_ingest.convert import dataset_version
from everloop_ingest.domain import ObjectFile, Part, Rows, Version
from everloop_ingest.ports import DataRepository
from everloop_ingest.settle import SOURCE
from everloop_runtime.database import LARGEST_MESSAGE
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import Event, encode, new_event

__all__ = ["announcement", "check_announceable"]

_SPARE_BYTES = 10_000
"""For the trace, and for what is longer than it is assumed to be."""


def announcement(version: Version, repository: DataRepository, parts: Sequence[Part]) -> Event:
    """DatasetVersionCreated of a version; its cause is what the version was cut for."""
    data = events_pb2.DatasetVersionCreated(dataset=dataset_version(version, repository, parts))
    return new_event(SOURCE, version.pipeline, data, cause=version.cause_id)


def check_announceable(version: Version, repository: DataRepository, parts: Sequence[Part]) -> None:
    """Returns where the event that names these parts will fit a message, before anything of the version is published.

    Raises:
        EverloopError: kind exhausted, reason TOO_MANY_PARTS.
    """
    tag = f"{version.pipeline}/v{version.number}"
    folder = f"{version.pipeline}/rows"
    size = sum(part.size_bytes for part in parts)
    uri = repository.uri(parts[0]) if parts else ""
    file = ObjectFile(folder, uri, f"{'0' * 32}.dir", size, tag, "0" * 40)
    whole = replace(version, rows=Rows.of(parts), file=file)
    _, value, headers = encode(announcement(whole, repository, parts))
    length = len(value) + sum(len(name) + len(item) for name, item in headers)
    if length > LARGEST_MESSAGE - _SPARE_BYTES:
        raise EverloopError(
            Kind.EXHAUSTED,
            "TOO_MANY_PARTS",
            f"{tag} has {len(parts)} parts, more than its announcement can name in {LARGEST_MESSAGE} bytes: raise "
            "EVERLOOP_PART_ROWS fourfold, then the next attempt puts parts together",
        )
