"""Pipelines that the trainer cannot train fail at the start, and downloads are verified."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from everloop_contracts.pipeline import Pipeline, PipelineError
from everloop_runtime.errors import EverloopError
from everloop_trainer.adapters.s3 import read_file
from everloop_trainer.app import check
from everloop_trainer.domain import DataFile


def test_an_unknown_family_is_named(make_pipeline: Callable[..., Pipeline]) -> None:
    broken = make_pipeline(families=["perceptron"])
    with pytest.raises(PipelineError, match=r"sales: training\.families: .*'perceptron'"):
        check({"sales": broken})


def test_a_good_pipeline_passes(make_pipeline: Callable[..., Pipeline]) -> None:
    check({"sales": make_pipeline()})


def test_a_file_whose_content_is_not_the_tracked_one_is_refused(tmp_path: Path) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), sink)
    path = tmp_path / "rows.parquet"
    path.write_bytes(sink.getvalue())
    md5 = hashlib.md5(sink.getvalue(), usedforsecurity=False).hexdigest()
    local = fs.LocalFileSystem()
    assert read_file(local, DataFile(str(path), md5)).num_rows == 2
    with pytest.raises(EverloopError, match="has MD5"):
        read_file(local, DataFile(str(path), "0" * 32))
    with pytest.raises(EverloopError, match="cannot be read"):
        read_file(local, DataFile(str(tmp_path / "none"), md5))
