"""The data bucket, on a folder; `test_service.py` has the same on a real object store."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from everloop_ingest.adapters.s3 import ShardBucket
from everloop_ingest.domain import ShardsLost
from everloop_runtime.errors import EverloopError, Kind


def test_what_is_lost_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    bucket, target = tmp_path / "bucket", tmp_path / "target"
    target.mkdir()
    files = ShardBucket(fs.LocalFileSystem(), str(bucket))
    bucket.mkdir()
    (bucket / "a").write_bytes(b"one")
    with pytest.raises(ShardsLost) as caught:
        files.fetch(["b", "a", "c"], target)
    assert caught.value.keys == ["b", "c"]
    assert [path.read_bytes() for path in target.iterdir()] == [b"one"]


def test_a_bucket_that_is_missing_is_an_outage(tmp_path: Path) -> None:
    files = ShardBucket(fs.LocalFileSystem(), str(tmp_path / "bucket"))
    with pytest.raises(EverloopError) as caught:
        files.fetch(["a"], tmp_path)
    assert caught.value.kind is Kind.UNAVAILABLE


def test_deleting_what_is_gone_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a", "b/c"):
        (tmp_path / name).write_bytes(b"one")
    files = ShardBucket(fs.LocalFileSystem(), str(tmp_path))
    files.delete(["a", "b/c", "d", "b/e"])
    files.delete(["a"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
