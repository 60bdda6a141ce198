"""Between the domain and the wire."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.ingest.v1 import dataset_pb2, dead_letter_pb2, ingest_pb2
from everloop_ingest.dead_letters import Kept, Wanted
from everloop_ingest.domain import (
    Audit,
    ObjectFile,
    Part,
    Rejection,
    State,
    Version,
    part_name,
)
from everloop_ingest.ports import DataRepository
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["dataset_version", "dead_letter", "record_result", "record_results", "wanted"]

_STATES = {
    State.CUTTING: dataset_pb2.DatasetVersion.STATE_CUTTING,
    State.AVAILABLE: dataset_pb2.DatasetVersion.STATE_AVAILABLE,
    State.QUARANTINED: dataset_pb2.DatasetVersion.STATE_QUARANTINED,
    State.FAILED: dataset_pb2.DatasetVersion.STATE_FAILED,
}

_LAST_MILLISECOND = 253_402_300_799_999
"""The end of the year 9999."""


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
        versioning=repository.versioning,
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
                uri=repository.uri(part),
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


def record_results(records: int, rejections: Sequence[Rejection]) -> list[ingest_pb2.RecordResult]:
    """What became of so many records, in their order."""
    results = [ingest_pb2.RecordResult(accepted=True)] * records
    for item in rejections:
        results[item.row] = record_result(item)
    return results


def record_result(item: Rejection) -> ingest_pb2.RecordResult:
    """A rejection as contracts show it."""
    return ingest_pb2.RecordResult(reason=item.reason, field=item.field, message=item.message)


def dead_letter(kept: Kept, pipeline: Pipeline, *, whole: bool) -> dead_letter_pb2.DeadLetter:
    """A dead letter as contracts show it; key, body and headers where it is shown as a whole."""
    letter = kept.letter
    message = dead_letter_pb2.DeadLetter(
        id=kept.id,
        pipeline=pipeline.name,
        reason=letter.reason,
        field=letter.field,
        message=letter.message,
        value_bytes=kept.value_bytes,
        replay_of=kept.replay_of,
    )
    # What no time can say, a producer may have made up.
    milliseconds = min(max(letter.timestamp, 0), _LAST_MILLISECOND)
    message.message_time.FromMilliseconds(milliseconds)
    message.reject_time.FromDatetime(kept.file.create_time)
    if whole:
        message.value, message.key = letter.value, letter.key or b""
        for name, value in letter.headers:
            message.headers.add(name=name, value=value)
    if kept.replay is not None:
        message.replay_time.FromDatetime(kept.replay.time)
        message.replay_request_id = kept.replay.request_id
    return message


def wanted(message: dead_letter_pb2.DeadLetterFilter) -> Wanted:
    """Which dead letters a filter asks for.

    Raises:
        EverloopError: kind invalid, reason INVALID_FILTER.
    """
    start = _instant(message.start_time) if message.HasField("start_time") else None
    end = _instant(message.end_time) if message.HasField("end_time") else None
    return Wanted(message.reason, start, end)


def _instant(time: Timestamp) -> datetime:
    try:
        return time.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise EverloopError(
            Kind.INVALID, "INVALID_FILTER", f"no time: {error}", field="filter"
        ) from error
