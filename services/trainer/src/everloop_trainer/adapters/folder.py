"""Files of this disk: rows that no service has announced, and books that are a folder with one model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs
from pydantic import TypeAdapter

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.adapters.s3 import read_file
from everloop_trainer.domain import DataFile, Dataset, Trained, Training, TrainingError
from everloop_trainer.ports import Artifacts, Incumbent

__all__ = ["FolderBooks", "FolderDatasets", "NoProduction", "dataset_at"]


def dataset_at(pipeline: Pipeline, path: Path) -> Dataset:
    """What lies at a path, as a dataset version without number: one Parquet file, or all of a folder by their names.

    Raises:
        TrainingError: there is none.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    if not files:
        raise TrainingError(f"{path} is no Parquet file, and no folder of them")
    tracked = tuple(DataFile(file.absolute().as_uri(), _md5(file)) for file in files)
    return Dataset(pipeline.name, 0, "", "", rows=0, labelled_rows=0, files=tracked)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


class FolderDatasets:
    """Implements `Datasets` for versions of `dataset_at`."""

    def __init__(self, columns: Sequence[str]) -> None:
        """Takes the names of the columns that the files must have; others are left out."""
        self._columns = list(columns)

    def fetch(self, dataset: Dataset) -> pa.Table:
        """All rows, in the order of the files."""
        store = fs.LocalFileSystem()
        tables = []
        for file in dataset.files:
            table = read_file(store, file)
            if missing := [name for name in self._columns if name not in table.column_names]:
                raise TrainingError(f"{file.uri} lacks the columns {', '.join(missing)}")
            tables.append(table.select(self._columns))
        return pa.concat_tables(tables, promote_options="permissive")


class NoProduction:
    """Implements `Production` where nothing serves."""

    def incumbent(self, model: str) -> Incumbent | None:
        """Never one."""
        return None


@dataclass(frozen=True, slots=True)
class _Trial:
    """One line of `trials.json`."""

    family: str
    params: Mapping[str, Any]
    metrics: Mapping[str, float]
    failed: bool


_TRAINED = TypeAdapter(Trained)
_TRIALS = TypeAdapter(list[_Trial])


class FolderBooks:
    """Implements `Tracking` for one training.

    The folder is what a packaged model is made of: `model.onnx`, its files, `pipeline.yaml` and `version.json`, and
    besides `trained.json` and `trials.json`, the search.
    """

    def __init__(self, folder: Path, specification: Path) -> None:
        """Takes the folder, which the model makes, and the YAML file of the pipeline."""
        self._folder = folder
        self._specification = specification
        self._trials: list[_Trial] = []

    def open_run(self, training: Training) -> str:
        """See `ports.Tracking`; the run is called as the training."""
        return training.id

    def log_trial(
        self,
        run_id: str,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """See `ports.Tracking`; kept until the model is logged, without its curve."""
        self._trials.append(_Trial(family, params, metrics, failed))

    def finished(self, run_id: str) -> Trained | None:
        """See `ports.Tracking`; a training begins anew each time."""
        return None

    def winner_before(self, training: Training) -> tuple[str, dict[str, Any]] | None:
        """See `ports.Tracking`; nothing came before."""
        return None

    def log_model(
        self,
        run_id: str,
        pipeline: Pipeline,
        params: Mapping[str, Any],
        artifacts: Artifacts,
        trained: Trained,
    ) -> Trained:
        """Writes the folder; `version.json` is its last file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = {
            "model": pipeline.name,
            "version": 0,  # the registry has never seen it
            "run_id": run_id,
            "sha256": trained.onnx_sha256,
        }
        content = {
            **artifacts.files,
            "model.onnx": artifacts.onnx,
            "trained.json": _TRAINED.dump_json(trained, indent=1),
            "trials.json": _TRIALS.dump_json(self._trials, indent=1),
            "pipeline.yaml": self._specification.read_bytes(),
            "version.json": json.dumps(wanted, indent=1).encode(),
        }
        for name, file in content.items():
            (self._folder / name).write_bytes(file)
        return trained

    def fail(self, training: Training) -> None:
        """See `ports.Tracking`; a training that failed leaves nothing."""

    def kill(self, training: Training) -> None:
        """See `ports.Tracking`; a training that was cancelled leaves nothing."""
