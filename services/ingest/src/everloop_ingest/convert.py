"""From the domain to the wire."""

from __future__ import annotations

from collections.abc import Sequence

from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2
from everloop_ingest.domain import Audit, ObjectFile, Part, State, Version, part_name
from everloop_ingest.ports import DataRepository

__all__ = ["dataset_version"]

_STATES = {
    State.CUTTING: dataset_pb2.DatasetVersion.STATE_CUTTING,
    State.AVAILABLE: dataset_pb2.DatasetVersion.STATE_AVAILABLE,
    State.QUARANTINED: dataset_pb2.DatasetVersion.STATE_QUARANTINED,
    State.FAILED: dataset_pb2.DatasetVersion.STATE_FAILED,
}


def dataset_version(
    version: Version,
    repository: DataRepository,
    parts: Sequence[Part] = (),
    audit: Sequence[Audit] = (),
) -> dataset_pb2.DatasetVersion:
    """A version as contracts show it; its parts and what people did to it where they are given."""
    message = dataset_pb2.DatasetVersion(
        pipeline=version.pipeline,
        version=version.number,
        state=_STATES[version.state],
        git_url=repository.url,
        shards=version.shards,
        cause_id=version.cause_id,
        error=version.error,
    )
    message.create_time.FromDatetime(version.create_time)
    if version.rows is not None:
        message.rows = version.rows.rows
        message.labelled_rows = version.rows.labelled_rows
        if version.rows.first_event_time is not None and version.rows.last_event_time is not None:
            message.first_event_time.FromDatetime(version.rows.first_event_time)
            message.last_event_time.FromDatetime(version.rows.last_event_time)
    if version.file is not None:
        message.git_tag = version.file.tag
        message.git_commit = version.file.commit
        message.data.CopyFrom(_object(version.file))
        if not version.in_parts:
            message.objects.add().CopyFrom(message.data)
        for number, part in enumerate(parts):
            message.objects.add(
                path=f"{version.file.path}/{part_name(number)}",
                uri=repository.uri(part.md5),
                md5=part.md5,
                size_bytes=part.size_bytes,
            )
    for item in audit:
        entry = message.audit.add(
            action=item.action, actor=item.actor, reason=item.reason, request_id=item.request_id
        )
        entry.time.FromDatetime(item.create_time)
    return message


def _object(file: ObjectFile) -> dataset_pb2.DatasetObject:
    return dataset_pb2.DatasetObject(
        path=file.path, uri=file.uri, md5=file.md5, size_bytes=file.size_bytes
    )
