"""Dead letters: list them, look at one, put them on their topic again, and let go of old ones."""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.letters import LetterStore
from everloop_ingest.domain import (
    DeadLetter,
    LetterFile,
    Partition,
    Reason,
    Replay,
    Replayed,
    ShardsLost,
)
from everloop_ingest.letters import REPLAY_OF, decode, name_of, replayed
from everloop_ingest.ports import ShardFiles
from everloop_ingest.request_ids import reused
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["DeadLetters", "Kept", "Wanted"]

log = logging.getLogger(__name__)

_FILES_PER_PAGE = 20
"""Objects that one call reads at most: a page may be short, never slow."""
_IDS = 500
_REPLAY_BYTES = 8 * 1024 * 1024
"""Bytes of the bodies that one call puts into the outbox, unless the first alone is larger."""
_EXPIRED_AT_ONCE = 100
_TOKEN = re.compile(r"^(\d{1,18})-(\d{1,18})$", re.ASCII)
_ID = re.compile(r"^(.{1,249})/(\d{1,9})/(\d{1,18})$", re.ASCII)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which dead letters of a pipeline.

    Attributes:
        reason: code of a `Reason`; any where empty.
        start: rejected then or later; any where None.
        end: rejected before; any where None.
    """

    reason: str = ""
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A dead letter where it is kept.

    Attributes:
        letter: the message with the reason.
        file: the object that holds it.
        replay: that it was put on its topic again; None where it was not.
        value_bytes: size of its body, which pages leave out together with key and headers.
    """

    letter: DeadLetter
    file: LetterFile
    replay: Replay | None = None
    value_bytes: int = 0

    @property
    def id(self) -> str:
        """What names it."""
        return name_of(self.file.partition, self.letter)

    @property
    def replay_of(self) -> str:
        """Id of the dead letter that it was a replay of; empty where it was none."""
        found = (value for name, value in self.letter.headers if name == REPLAY_OF)
        return next(found, b"").decode(errors="replace")


class DeadLetters:
    """The use cases. Safe to call from several threads."""

    def __init__(
        self,
        store: LetterStore,
        files: ShardFiles,
        folder: Path,
        max_record_bytes: int,
        outbox_full: Callable[[], bool],
    ) -> None:
        """Takes the database, the data bucket, a folder for copies of its objects, and the largest record.

        `outbox_full` says whether too many messages wait to be sent.
        """
        self._store = store
        self._files = files
        self._folder = folder
        self._max_bytes = max_record_bytes
        self._outbox_full = outbox_full

    def page(
        self, pipeline: Pipeline, wanted: Wanted, token: str, size: int
    ) -> tuple[list[Kept], str]:
        """At most `size` dead letters, newest first and without bodies, and the next page's token, empty at the end.

        Raises:
            EverloopError: kind invalid, reasons INVALID_PAGE and INVALID_FILTER; kind unavailable.
        """
        found, following = self._walk(pipeline, wanted, token, size, None)
        return self._marked(found), following

    def get(self, pipeline: Pipeline, name: str) -> Kept:
        """One dead letter.

        Raises:
            EverloopError: kind not_found, reason DEAD_LETTER_NOT_FOUND; kind unavailable.
        """
        [kept] = self._marked([self._find(pipeline, name)])
        return kept

    def replay(
        self,
        pipeline: Pipeline,
        request_id: str,
        names: Sequence[str],
        wanted: Wanted,
        token: str,
        size: int,
    ) -> Replayed:
        """Puts dead letters on the record topic again: the named ones, or a page of those that are wanted.

        Each goes at most once, whoever asks, with its key, body, headers and time, and a header that links it. What is
        still larger than the service takes stays. A repeat of a request returns the first answer.

        Raises:
            EverloopError: kind conflict, reason REQUEST_ID_REUSED: the request came with something else before; kind
                exhausted, reason OUTBOX_FULL: ask again later; kind invalid, not_found and unavailable as above.
        """
        digest = hashlib.sha256(repr((list(names), wanted, token, size)).encode()).digest()
        answer = self._store.answer(pipeline.name, request_id)
        if answer is None:
            if self._outbox_full():
                raise EverloopError(
                    Kind.EXHAUSTED,
                    "OUTBOX_FULL",
                    "too many messages are on their way; ask again later",
                ).after(5.0)
            found, following = self._chosen(pipeline, names, wanted, token, size)
            fit = [kept for kept in found if len(kept.letter.value) <= self._max_bytes]
            messages = [
                (
                    kept.file.partition,
                    kept.letter.offset,
                    replayed(pipeline, kept.file.partition, kept.letter),
                )
                for kept in fit
            ]
            mine = Replayed(digest, len(fit), len(found) - len(fit), following)
            answer = self._store.replay(
                pipeline.name, request_id, mine, messages, datetime.now(UTC)
            )
        if answer.digest != digest:
            raise reused()
        return answer

    def expire(self, before: datetime) -> int:
        """Deletes what was rejected before a moment, as much as goes at once; returns how many objects."""
        files = self._store.expired(before, _EXPIRED_AT_ONCE)
        if files:
            self._files.delete([file.key for file in files])
            self._store.forget(files)
        return len(files)

    def _chosen(
        self, pipeline: Pipeline, names: Sequence[str], wanted: Wanted, token: str, size: int
    ) -> tuple[list[Kept], str]:
        if not names:
            return self._walk(pipeline, wanted, token, size, _REPLAY_BYTES)
        if wanted != Wanted() or token or len(names) > _IDS:
            raise EverloopError(
                Kind.INVALID,
                "INVALID_FILTER",
                f"either ids, at most {_IDS}, or a filter with pages",
                field="ids",
            )
        found, total = [], 0
        for name in dict.fromkeys(names):
            found.append(self._find(pipeline, name))
            total += len(found[-1].letter.value)
            if total > _REPLAY_BYTES and len(found) > 1:
                raise EverloopError(
                    Kind.INVALID,
                    "TOO_MANY_BYTES",
                    f"these are more than {_REPLAY_BYTES} bytes: name fewer at once",
                    field="ids",
                )
        return found, ""

    def _walk(
        self, pipeline: Pipeline, wanted: Wanted, token: str, size: int, most: int | None
    ) -> tuple[list[Kept], str]:
        """A page without bodies, or of bodies of together at most `most` bytes unless the first alone has more."""
        if wanted.reason and wanted.reason not in Reason.__members__:
            known = ", ".join(Reason.__members__)
            raise EverloopError(
                Kind.INVALID,
                "INVALID_FILTER",
                f"there is no reason {wanted.reason[:100]!r}; there are: {known}",
                field="filter.reason",
            )
        up_to, below = _position(token)
        files = self._store.files(
            pipeline.name, wanted.reason, wanted.start, wanted.end, up_to, _FILES_PER_PAGE + 1
        )
        found: list[Kept] = []
        total = 0
        for file in files[:_FILES_PER_PAGE]:
            for letter in self._letters(file, wanted.reason, below if file.id == up_to else None):
                total += len(letter.value)
                if len(found) == size or (most is not None and found and total > most):
                    last = found[-1]
                    return found, f"{last.file.id}-{last.letter.offset}"
                body = len(letter.value)
                if most is None:  # a page of whole bodies would be beyond any message
                    letter = replace(letter, value=b"", key=None, headers=_links(letter))
                found.append(Kept(letter, file, value_bytes=body))
        if len(files) > _FILES_PER_PAGE:
            return found, f"{files[_FILES_PER_PAGE - 1].id}-0"
        return found, ""

    def _find(self, pipeline: Pipeline, name: str) -> Kept:
        match = _ID.match(name)
        if match and match[1] == pipeline.record_topic:
            partition, offset = Partition(match[1], int(match[2])), int(match[3])
            file = self._store.file_of(partition, offset)
            for letter in self._letters(file, "", offset + 1) if file else ():
                if letter.offset == offset and file:
                    return Kept(letter, file, value_bytes=len(letter.value))
                break
        raise EverloopError(
            Kind.NOT_FOUND,
            "DEAD_LETTER_NOT_FOUND",
            f"{pipeline.name} has no dead letter {name[:300]!r}",
            id=name[:300],
        )

    def _letters(self, file: LetterFile, reason: str, below: int | None) -> Iterator[DeadLetter]:
        """What an object holds, newest first; nothing where it is gone."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="letters-", dir=self._folder) as name:
            try:
                [path] = self._files.fetch([file.key], Path(name))
            except ShardsLost:
                log.warning("%s is not there any more", file.key)
                return
            yield from decode(path, reason, below)

    def _marked(self, found: Sequence[Kept]) -> list[Kept]:
        """The same with what is known of their replays."""
        marks: dict[tuple[Partition, int], Replay] = {}
        for partition in dict.fromkeys(kept.file.partition for kept in found):
            offsets = [kept.letter.offset for kept in found if kept.file.partition == partition]
            for offset, replay in self._store.replayed(partition, offsets).items():
                marks[partition, offset] = replay
        return [
            replace(kept, replay=marks.get((kept.file.partition, kept.letter.offset)))
            for kept in found
        ]


def _links(letter: DeadLetter) -> list[tuple[str, bytes]]:
    return [(name, value) for name, value in letter.headers if name == REPLAY_OF]


def _position(token: str) -> tuple[int | None, int | None]:
    """Where a page starts: the newest object, and the offset in it that it stays below."""
    if not token:
        return None, None
    match = _TOKEN.match(token)
    if match is None:
        raise EverloopError(
            Kind.INVALID, "INVALID_PAGE", "page_token is none of ours", field="page_token"
        )
    return int(match[1]), int(match[2])
