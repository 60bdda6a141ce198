"""Erasing an entity's dead letters from the data bucket; those on their topic are left to Kafka's retention."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
from google.protobuf.message import DecodeError

from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters.store.letters import LetterStore
from everloop_ingest.domain import DeadLetter, LetterFile, ShardsLost
from everloop_ingest.formats import from_protobuf, is_protobuf
from everloop_ingest.letters import decode, encode
from everloop_ingest.ports import ShardFiles

__all__ = ["EraseLetters"]

_FILES_AT_ONCE = 100


class EraseLetters:
    """The use case; may be repeated after a crash."""

    def __init__(self, store: LetterStore, files: ShardFiles, folder: Path) -> None:
        """Takes the database, the data bucket, and a folder for copies of its objects."""
        self._store = store
        self._files = files
        self._folder = folder

    def __call__(
        self, pipeline: Pipeline, record_ids: Sequence[str], field: str, value: str
    ) -> None:
        """Reads all dead letters of a pipeline and writes the objects without the entity's.

        These are the ones with one of the ids as their key or record id, and the ones whose field has the value; what
        cannot be read as a record goes where one of them is anywhere in its bytes.

        Raises:
            EverloopError: kind unavailable.
        """
        ids = frozenset(record_ids)
        up_to: int | None = None
        while files := self._store.files(pipeline.name, "", None, None, up_to, _FILES_AT_ONCE):
            for file in files:
                self._rewrite(file, pipeline.schema_.id, ids, field, value)
            up_to = files[-1].id - 1

    def _rewrite(
        self, file: LetterFile, key: str, ids: frozenset[str], field: str, value: str
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="letters-", dir=self._folder) as name:
            try:
                [path] = self._files.fetch([file.key], Path(name))
            except ShardsLost:
                return
            letters = list(decode(path, "", None))
        left = [letter for letter in letters if not _is_of(letter, key, ids, field, value)]
        if not left:
            self._files.delete([file.key])
            self._store.forget([file])
        elif len(left) < len(letters):
            self._files.put(file.key, encode(left[::-1]))


def _is_of(letter: DeadLetter, key: str, ids: frozenset[str], field: str, value: str) -> bool:
    if letter.key is not None and letter.key.decode(errors="replace") in ids:
        return True
    row = _record(letter)
    if row is None:
        texts = [*ids, value] if field else [*ids]
        return any(text.encode() in letter.value for text in texts)
    return (key in row and str(row[key]) in ids) or (bool(field) and row.get(field) == value)


def _record(letter: DeadLetter) -> dict[str, Any] | None:
    """What the message says, None where it is no record."""
    try:
        row = (
            from_protobuf(letter.value)
            if is_protobuf(letter.headers)
            else orjson.loads(letter.value)
        )
    except (DecodeError, orjson.JSONDecodeError):
        return None
    return row if isinstance(row, dict) else None
