"""What the use cases need from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

from everloop_ingest.domain import ObjectFile, Part, Version

__all__ = [
    "DataRepository",
    "Delivery",
    "RecordLog",
    "RecordSink",
    "Repositories",
    "ShardFiles",
    "Writer",
]


class ShardFiles(Protocol):
    """The data bucket: the shards, and what orders the events of parts' records."""

    def put(self, key: str, content: bytes) -> None:
        """Stores an object: all of it or nothing; the same again changes nothing.

        Raises:
            EverloopError: kind unavailable, the object store does not take it now.
        """

    def fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        """Copies objects into a folder; the files in the order of the keys.

        Raises:
            ShardsLost: some are not there any more; all others were copied.
            EverloopError: kind unavailable.
        """

    def delete(self, keys: Sequence[str]) -> None:
        """Deletes objects; one that is not there is no error.

        Raises:
            EverloopError: kind unavailable: some may be there still.
        """

    def stored_before(self, folder: str, time: datetime) -> list[str]:
        """Objects below a folder that were stored before a moment.

        Raises:
            EverloopError: kind unavailable.
        """


class DataRepository(Protocol):
    """The git repository of dataset versions, and what keeps their content."""

    @property
    def versioning(self) -> str:
        """What keeps the content, as a pipeline's `versioning` names it."""

    @property
    def url(self) -> str:
        """Where it can be cloned from."""

    def uri(self, part: Part) -> str:
        """Where the content of a published part lies, `s3://…` or `file://…`."""

    def publish(
        self,
        version: Version,
        parts: Sequence[Part],
        new: Mapping[str, Path],
        check: Callable[[], None],
    ) -> ObjectFile:
        """Commits, tags and pushes a version that consists of `parts`, in this order.

        `new` holds the files, by MD5, of those that no earlier version has; they are taken over. May be called again
        for a version after a crash anywhere in it: the same parts give the same result. `check` is called when no
        other process can write to the repository any more, and keeps who lost its turn from it by raising.

        Raises:
            Exception: what `check` raises; nothing was changed.
            EverloopError: kind unavailable, the content cannot be stored now; kind exhausted: it is more than may be.
        """

    def fetch(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        """Copies the content of parts into a folder; the files in the order of the parts.

        Raises:
            EverloopError: kind unavailable; reason PART_LOST where one is not there.
        """


Repositories = Mapping[str, DataRepository]
"""Where the versions of each pipeline are, by its name."""


class RecordLog(Protocol):
    """The record topics, as far as they reach."""

    def end_offsets(self, topic: str, seconds: float) -> dict[int, int]:
        """For each partition the offset after its last message.

        Raises:
            EverloopError: kind unavailable, the broker does not answer within `seconds`.
        """


class Delivery(Protocol):
    """Records on their way to the broker."""

    def wait(self, seconds: float) -> None:
        """Returns when the broker has all of them.

        Raises:
            EverloopError: kind unavailable, it does not have all of them after `seconds` (some may be there).
        """


class RecordSink(Protocol):
    """The way onto the record topics."""

    def begin(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timestamp: int,
        patience: float = 0.0,
    ) -> Delivery:
        """Puts keyed records on their way to a topic, in their order.

        Args:
            topic: where they go.
            records: keys and bodies.
            timestamp: becomes theirs, in milliseconds since 1970-01-01 UTC: what was judged fresh by it stays so.
            patience: how many seconds to wait for others that are under way, where these are too many bytes with them.

        Raises:
            EverloopError: kind exhausted, too many bytes are under way: none of these is; kind unavailable.
        """


class Writer(Protocol):
    """The dataset writer of this process."""

    def flush(self, topic: str) -> None:
        """Asks it to settle now what it holds of a topic; returns at once."""
