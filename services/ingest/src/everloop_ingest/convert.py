"""From the domain to the wire."""

from __future__ import annotations

from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2
from everloop_ingest.domain import State, Version

__all__ = ["dataset_version"]

_STATES = {
    State.CUTTING: dataset_pb2.DatasetVersion.STATE_CUTTING,
    State.AVAILABLE: dataset_pb2.DatasetVersion.STATE_AVAILABLE,
    State.FAILED: dataset_pb2.DatasetVersion.STATE_FAILED,
}


def dataset_version(version: Version, git_url: str) -> dataset_pb2.DatasetVersion:
    """A version as contracts show it."""
    message = dataset_pb2.DatasetVersion(
        pipeline=version.pipeline,
        version=version.number,
        state=_STATES[version.state],
        git_url=git_url,
        shards=version.shards,
        cause_id=version.cause_id,
        error=version.error,
    )
    message.create_time.FromDatetime(version.create_time)
    if version.rows is not None:
        message.rows = version.rows.rows
        message.labelled_rows = version.rows.labelled_rows
        message.first_event_time.FromDatetime(version.rows.first_event_time)
        message.last_event_time.FromDatetime(version.rows.last_event_time)
    if version.file is not None:
        message.git_tag = version.file.tag
        message.git_commit = version.file.commit
        message.objects.add(
            path=version.file.path,
            uri=version.file.uri,
            md5=version.file.md5,
            size_bytes=version.file.size_bytes,
        )
    return message
