"""What ingest speaks of: messages, rejections, shards, dataset versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Protocol

__all__ = [
    "DONE",
    "RECORD_OVERHEAD_BYTES",
    "Audit",
    "Batch",
    "Books",
    "DeadLetter",
    "LetterFile",
    "Message",
    "ObjectFile",
    "OutboxMessage",
    "Part",
    "Partition",
    "Pushed",
    "Reason",
    "Reclaimable",
    "Rejection",
    "Replay",
    "Replayed",
    "Rows",
    "Shard",
    "ShardsLost",
    "State",
    "Unversioned",
    "Version",
    "lag",
    "part_name",
]

RECORD_OVERHEAD_BYTES = 512
"""What a record, and a message that holds records, takes in memory besides its bytes."""


class Reason(StrEnum):
    """Why a message is no record of its pipeline."""

    RECORD_TOO_LARGE = "RECORD_TOO_LARGE"
    MALFORMED_JSON = "MALFORMED_JSON"
    MALFORMED_PROTOBUF = "MALFORMED_PROTOBUF"
    NOT_AN_OBJECT = "NOT_AN_OBJECT"
    UNKNOWN_FIELD = "UNKNOWN_FIELD"
    MISSING_FIELD = "MISSING_FIELD"
    NOT_NULLABLE = "NOT_NULLABLE"
    WRONG_TYPE = "WRONG_TYPE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    UNKNOWN_CATEGORY = "UNKNOWN_CATEGORY"
    TOO_LONG = "TOO_LONG"
    PATTERN_MISMATCH = "PATTERN_MISMATCH"
    RULE_BROKEN = "RULE_BROKEN"
    TOO_OLD = "TOO_OLD"
    IN_FUTURE = "IN_FUTURE"
    UNPROCESSABLE = "UNPROCESSABLE"
    """Settling failed on it: a defect of ours, kept from blocking the partition."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One message that is not accepted.

    Attributes:
        row: its position among the messages that were validated.
        reason: why, for programs.
        field: the field that breaks the schema; empty where it is the message as a whole.
        message: why, for a person.
    """

    row: int
    reason: Reason
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push request was answered.

    Attributes:
        digest: of the records that came with it.
        rejections: of those that are not accepted.
    """

    digest: bytes
    rejections: list[Rejection]


@dataclass(frozen=True, order=True, slots=True)
class Partition:
    """One partition of a pipeline's record topic."""

    topic: str
    number: int


OutboxMessage = tuple[str, bytes | None, bytes, list[tuple[str, bytes]]]
"""Topic, key, value and headers of a message for the outbox."""


class Message(Protocol):
    """One Kafka message, as the broker's client hands it over."""

    @property
    def offset(self) -> int:
        """Its offset in the partition."""

    @property
    def timestamp(self) -> int:
        """Its Kafka timestamp, milliseconds since 1970-01-01 UTC."""

    @property
    def key(self) -> bytes | None:
        """Its key."""

    @property
    def value(self) -> bytes | None:
        """Its body; None is a tombstone."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Its headers."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What the writer settles at once: consecutive messages of one partition.

    Attributes:
        pipeline: name of the pipeline.
        partition: where they come from.
        start: position of the writer before them.
        end: position after them; beyond the last message + 1 where the log holds what is no message.
        messages: in order of offset; may be empty, then only the position moves.
    """

    pipeline: str
    partition: Partition
    start: int
    end: int
    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was rejected, as it came.

    Attributes:
        offset: its offset in its partition.
        timestamp: when it was sent first, milliseconds since 1970-01-01 UTC.
        key: its key.
        value: its body.
        headers: its headers.
        reason: why it was rejected, for programs.
        field: the field that breaks the schema; empty where it is the message as a whole.
        message: why, for a person.
    """

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]
    reason: Reason
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class LetterFile:
    """The object that holds the dead letters of one batch.

    Attributes:
        id: rises with the time at which they were rejected.
        reasons: those that are in it, with how many.
        create_time: when they were rejected.
    """

    id: int
    partition: Partition
    key: str
    reasons: dict[str, int]
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Replay:
    """That a dead letter was put on its topic again."""

    request_id: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay request was answered.

    Attributes:
        digest: of what was asked.
        replayed: dead letters that are on their way to the topic.
        skipped: dead letters that stay.
        next_page_token: where the next request goes on; empty at the end.
    """

    digest: bytes
    replayed: int
    skipped: int
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Shard:
    """The books of one settled batch, and the object that holds its rows.

    Attributes:
        key: path of the object inside the data bucket; empty where no message was accepted.
        accepted: rows in the object, late labels among them.
        actuals: how many of them are late labels.
        rejected: messages that went to the dead-letter topic, by reason.
        size_bytes: size of the object.
        first_event_time: earliest event time among the rows; None where no row has one.
        last_event_time: latest event time.
        trace: `traceparent` of the last message that came with one; empty where none did.
    """

    pipeline: str
    partition: Partition
    first_offset: int
    last_offset: int
    key: str
    accepted: int
    actuals: int
    rejected: dict[str, int]
    size_bytes: int
    first_event_time: datetime | None
    last_event_time: datetime | None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Reclaimable:
    """Paths of objects in the data bucket that no later version needs.

    Attributes:
        shards: whose rows are in parts.
        states: of parts that only earlier versions have.
        labels: that waited at an earlier version.
    """

    shards: list[str]
    states: list[str]
    labels: list[str]

    def __len__(self) -> int:
        return len(self.shards) + len(self.states) + len(self.labels)


def lag(positions: Mapping[int, int], ends: Mapping[int, int]) -> int:
    """Messages between the writer's positions and the ends of a topic, both by partition.

    >>> lag({0: 3}, {0: 5, 1: 1})
    3
    """
    return sum(max(0, end - positions.get(number, 0)) for number, end in ends.items())


class ShardsLost(Exception):
    """The object store is there, and objects that were stored on it are not."""

    def __init__(self, keys: Sequence[str]) -> None:
        """Takes the paths of all that are missing."""
        super().__init__(f"{len(keys)} objects are lost")
        self.keys = keys


class State(StrEnum):
    """Life of a dataset version."""

    CUTTING = "CUTTING"
    AVAILABLE = "AVAILABLE"
    QUARANTINED = "QUARANTINED"
    FAILED = "FAILED"


DONE = (State.AVAILABLE, State.QUARANTINED)
"""States of a version that is tagged, and whose rows the next one starts from."""


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet file of a version's rows, immutable and shared by all versions in which these rows are the same.

    The parts of a version follow each other by event time, then record id, and so do the rows of each.

    Attributes:
        md5: of the content, hexadecimal; what DVC knows it by.
        sha256: of the content, hexadecimal, what Git LFS knows it by; empty in parts of before there was a choice.
        first_record_id: record id of the first row, whose event time is `first_event_time`.
        state: path inside the data bucket of what orders the events of its records, see `parts.py`.
        columns: digest of the schema that it was written with.
    """

    md5: str
    sha256: str
    size_bytes: int
    rows: int
    labelled_rows: int
    first_event_time: datetime
    first_record_id: str
    last_event_time: datetime
    state: str
    columns: str


def part_name(number: int) -> str:
    """Name of a version's part by its position: in the order of names the rows are in order."""
    return f"part-{number:05d}.parquet"


@dataclass(frozen=True, slots=True)
class Rows:
    """What a version holds; no times where it has no row."""

    rows: int
    labelled_rows: int
    first_event_time: datetime | None
    last_event_time: datetime | None

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Rows:
        """Sums up parts."""
        return cls(
            sum(part.rows for part in parts),
            sum(part.labelled_rows for part in parts),
            min((part.first_event_time for part in parts), default=None),
            max((part.last_event_time for part in parts), default=None),
        )


@dataclass(frozen=True, slots=True)
class ObjectFile:
    """What a version's tag tracks: a directory of parts; in versions of before there were parts, one file.

    Attributes:
        path: inside the repository, as `dvc get` takes it.
        uri: of the content on the object store, of a directory its listing; with Git LFS the repository.
        md5: of the content, hexadecimal; of a directory that of its listing, with `.dir` behind it, as DVC writes it.
        size_bytes: of all content.
        tag: git tag of the version.
        commit: git commit that the tag points to.
    """

    path: str
    uri: str
    md5: str
    size_bytes: int
    tag: str
    commit: str


@dataclass(frozen=True, slots=True)
class Version:
    """A dataset version. `rows` and `file` are known once it is complete, `error` where it did not pass."""

    pipeline: str
    number: int
    state: State
    cause_id: str
    create_time: datetime
    shards: int
    rows: Rows | None = None
    file: ObjectFile | None = None
    error: str = ""

    @property
    def done(self) -> bool:
        """Whether it is tagged: available or in quarantine."""
        return self.state in DONE

    @property
    def in_parts(self) -> bool:
        """Whether its rows are in parts rather than in the one file of earlier times."""
        return self.file is not None and self.file.md5.endswith(".dir")


@dataclass(frozen=True, slots=True)
class Audit:
    """Something that a person did to dataset versions, and why.

    Attributes:
        version: that it was done to, or that came of it.
    """

    pipeline: str
    request_id: str
    version: int
    action: str
    actor: str
    reason: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Unversioned:
    """What is stored and in no version yet.

    Attributes:
        records: accepted records, late labels not counted.
        since: when the oldest of it was stored; None where there is none.
    """

    records: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Books:
    """What became of the messages of one pipeline."""

    accepted: int
    actuals: int
    rejected_by_reason: dict[str, int]

    @property
    def rejected(self) -> int:
        """Messages that went to the dead-letter topic."""
        return sum(self.rejected_by_reason.values())
