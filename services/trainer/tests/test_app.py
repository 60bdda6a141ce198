"""Pipelines that the trainer cannot train fail at the start, and downloads are verified."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from pydantic import SecretStr

from everloop_contracts.pipeline import Pipeline, PipelineError
from everloop_runtime.errors import EverloopError, Kind
from everloop_trainer.adapters.s3 import S3Datasets, read_file
from everloop_trainer.app import check
from everloop_trainer.domain import DataFile, Dataset, TrainingError
from everloop_trainer.search import joined
from everloop_trainer.settings import TrainerSettings


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
    spaced = tmp_path / "by git-lfs" / "rows"
    spaced.parent.mkdir()
    spaced.write_bytes(sink.getvalue())
    assert read_file(fs.S3FileSystem(), DataFile(spaced.as_uri(), md5)).num_rows == 2
    with pytest.raises(TrainingError, match=r"rows\.parquet is corrupt: it has MD5"):
        read_file(local, DataFile(str(path), "0" * 32))


def test_a_file_that_is_gone_is_no_outage(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none"), (tmp_path / "none").as_uri()):
        with pytest.raises(EverloopError) as caught:
            read_file(fs.LocalFileSystem(), DataFile(uri, "0" * 32))
        assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, "DATASET_GONE")


def test_an_object_store_that_is_away_is_an_outage(
    make_dataset: Callable[..., Dataset], tmp_path: Path
) -> None:
    settings = TrainerSettings(
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key="a",
        s3_secret_key=SecretStr("b"),
        data_dir=tmp_path,
    )
    with pytest.raises(EverloopError) as caught:
        S3Datasets(settings).fetch(make_dataset())
    assert caught.value.kind is Kind.UNAVAILABLE


def test_a_ray_cluster_that_is_away_is_an_outage_at_once() -> None:
    began = time.monotonic()
    with pytest.raises(EverloopError) as caught, joined("127.0.0.1:9"):
        pass
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "RAY_UNAVAILABLE")
    assert time.monotonic() - began < 10
