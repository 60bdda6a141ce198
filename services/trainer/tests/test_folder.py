"""Training from files of this disk: what they must be, and what a person is told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from everloop_contracts.pipeline import Pipeline
from everloop_trainer import app
from everloop_trainer.adapters.folder import FolderDatasets, dataset_at
from everloop_trainer.domain import TrainingError


def test_all_files_of_a_folder_are_one_version_in_the_order_of_their_names(
    tmp_path: Path, make_pipeline: Callable[..., Pipeline], make_table: Callable[..., pa.Table]
) -> None:
    table = make_table()
    for name, part in {"b": table.slice(100), "a": table.slice(0, 100)}.items():
        more = part.append_column("more", pa.nulls(len(part)))
        pq.write_table(more, tmp_path / f"{name}.parquet")
    dataset = dataset_at(make_pipeline(), tmp_path)
    assert FolderDatasets(table.column_names).fetch(dataset).equals(table)
    (tmp_path / "a.parquet").write_bytes(b"changed meanwhile")
    with pytest.raises(TrainingError, match="corrupt"):
        FolderDatasets(table.column_names).fetch(dataset)


@pytest.fixture
def pipeline_file(tmp_path: Path, make_pipeline: Callable[..., Pipeline]) -> Path:
    path = tmp_path / "sales.yaml"
    path.write_text(yaml.safe_dump(make_pipeline().model_dump(mode="json", by_alias=True)))
    return path


def train(pipeline: Path, data: Path) -> int:
    to = pipeline.parent / "out"
    places = ["--data", str(data), "--to", str(to), "--metrics", f"{to}.json"]
    code = app.train([str(pipeline), *places])
    assert not to.exists()
    return code


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_rows_that_give_no_model_are_told(
    pipeline_file: Path, tmp_path: Path, make_table: Callable[..., pa.Table], capsys: Any
) -> None:
    assert train(pipeline_file, tmp_path / "none") == 3
    assert "no Parquet file" in capsys.readouterr().err
    pq.write_table(make_table().drop_columns(["price"]), tmp_path / "rows.parquet")
    assert train(pipeline_file, tmp_path / "rows.parquet") == 3
    assert "lacks the columns price" in capsys.readouterr().err
    pq.write_table(make_table(rows=30), tmp_path / "rows.parquet")
    assert train(pipeline_file, tmp_path / "rows.parquet") == 3
    assert "too few" in capsys.readouterr().err


def test_a_wrong_pipeline_is_told(pipeline_file: Path, tmp_path: Path, capsys: Any) -> None:
    told = yaml.safe_load(pipeline_file.read_text())
    told["training"]["families"] = ["perceptron"]
    pipeline_file.write_text(yaml.safe_dump(told))
    assert train(pipeline_file, tmp_path) == 2
    assert "'perceptron'" in capsys.readouterr().err
