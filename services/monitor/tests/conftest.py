"""What the monitor's tests share: a small pipeline, a database, and batches of predictions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import everloop_monitor
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_runtime.database import Database

EPOCH = "00000000000000aa"
MIGRATIONS = Path(everloop_monitor.__file__).parent / "migrations"

MakePipeline = Callable[..., Pipeline]
MakeBatch = Callable[..., PredictionsLogged]


@pytest.fixture(scope="session")
def make_pipeline() -> MakePipeline:
    """Makes a pipeline `trips` with chunks of 100 rows; keyword arguments override its retrain rule."""

    def make(min_labelled: float = 0.5, name: str = "trips", **retrain: object) -> Pipeline:
        return Pipeline.model_validate(
            {
                "pipeline": name,
                "schema": {
                    "id": "id",
                    "time": "at",
                    "fields": {
                        "id": {"type": "string"},
                        "at": {"type": "timestamp", "timezone": "America/New_York"},
                        "x": {"type": "float", "nullable": True},
                        "city": {"type": "string", "nullable": True},
                        "paid": {"type": "bool", "nullable": True},
                        "late": {"type": "bool", "nullable": True},
                    },
                },
                "target": {"field": "late", "task": "binary"},
                "features": {
                    "hour": {"kind": "date_part", "of": "at", "part": "hour"},
                    "x": {"kind": "number", "of": "x"},
                    "city": {"kind": "category", "of": "city"},
                    "paid": {"kind": "category", "of": "paid"},
                },
                "training": {"families": ["logistic_regression"]},
                "monitoring": {
                    "chunk_rows": 100,
                    "min_labelled": min_labelled,
                    "drift": {"threshold": 0.5, "share": 0.5},
                    "performance": {"metric": "roc_auc", "max_loss": 0.1},
                    "retrain": {
                        "when": ["realised_performance"],
                        "chunks": 2,
                        "of": 3,
                        "cooldown": "1h",
                        **retrain,
                    },
                },
            }
        )

    return make


@pytest.fixture
def pipeline(make_pipeline: MakePipeline) -> Pipeline:
    """The pipeline as it comes."""
    return make_pipeline()


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database file, to copy."""
    path = tmp_path_factory.mktemp("template") / "monitor.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade(MIGRATIONS)
    database.close()
    return path


@pytest.fixture
def database_path(empty_database: Path, tmp_path: Path) -> Path:
    """A database file of the test's own."""
    return Path(shutil.copy(empty_database, tmp_path / "monitor.db"))


@pytest.fixture
def database(database_path: Path) -> Iterator[Database]:
    """A migrated database."""
    database = Database(f"sqlite:///{database_path}")
    yield database
    database.close()


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Makes a batch whose row `n` has prediction id `<epoch>-<n>`, record id `r<n>` and local time `n` minutes."""

    def make(
        first: int,
        rows: int,
        *,
        score: float = 0.9,
        x: float = 0.0,
        version: int = 1,
        pipeline: str = "trips",
        records: Sequence[str] | None = None,
        epoch: str = EPOCH,
    ) -> PredictionsLogged:
        numbers = range(first, first + rows)
        message = PredictionsLogged(
            pipeline=pipeline,
            model_version=version,
            prediction_ids=[f"{epoch}-{n:x}" for n in numbers],
            record_ids=[f"r{n}" for n in numbers] if records is None else records,
            time_micros=[n * 1_000_000 for n in numbers],
            labels=["true" if score >= 0.5 else "false"] * rows,
            scores=[score] * rows,
        )
        message.columns.add(name="at", numbers=[60.0 * n for n in numbers])
        message.columns.add(name="x", numbers=[x] * rows)
        message.columns.add(name="city", texts=["NYC"] * rows)
        message.columns.add(name="paid", numbers=[1.0] * rows)
        return message

    return make
