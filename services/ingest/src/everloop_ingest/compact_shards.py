"""Putting small shards together, so that a version is not cut from many."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from everloop_ingest.adapters.store.upkeep import Upkeep
from everloop_ingest.domain import ShardsLost
from everloop_ingest.ports import ShardFiles

__all__ = ["CompactShards"]


class CompactShards:
    """The use case; may be repeated after a crash."""

    def __init__(
        self, upkeep: Upkeep, files: ShardFiles, folder: Path, *, small_rows: int, shards: int
    ) -> None:
        """Takes the database, the data bucket and a folder for work.

        Args:
            upkeep: the database.
            files: the data bucket.
            folder: for work.
            small_rows: rows up to which a shard is small.
            shards: small shards that make one object.
        """
        self._upkeep = upkeep
        self._files = files
        self._folder = folder
        self._small_rows = small_rows
        self._shards = shards

    def __call__(self, pipeline: str) -> None:
        """Puts the oldest small shards of a pipeline together, if they are enough.

        Raises:
            EverloopError: kind unavailable.
        """
        small = self._upkeep.small_shards(pipeline, self._small_rows, self._shards)
        if len(small) == self._shards:
            self._put_together(pipeline, [key for key, _ in small])

    def _put_together(self, pipeline: str, keys: Sequence[str]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="shards-", dir=self._folder) as name:
            try:
                paths = self._files.fetch(keys, Path(name))
            except ShardsLost:
                return  # the next version says so
            together = _concatenated([pq.read_table(path) for path in paths])
            sink = pa.BufferOutputStream()
            pq.write_table(together, sink, compression="zstd", compression_level=1)
        digest = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:32]
        key = f"{pipeline}/shards/together/{digest}.parquet"
        self._files.put(key, bytes(sink.getvalue()))
        # What a crash leaves behind here is an orphan that nothing reads, and that is swept.
        if self._upkeep.put_together(pipeline, keys, key):
            self._files.delete(keys)


def _concatenated(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of several schemas as one, by name: null where a table has no such column, int as float where one has."""
    schema = pa.unify_schemas([table.schema for table in tables], promote_options="permissive")
    # Not safe: a large int becomes the nearest float, as where the shards are read one by one.
    widened = [
        table.cast(pa.schema([schema.field(name) for name in table.column_names]), safe=False)
        for table in tables
    ]
    return pa.concat_tables(widened, promote_options="default")
