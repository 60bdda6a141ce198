"""What the monitor's tests share: a small pipeline, a database, batches of predictions, and a monitor without Kafka."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

import everloop_monitor
from everloop_contracts.pipeline import Pipeline
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_monitor.adapters.store import chunks, decisions
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetectors
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_runtime.database import Database
from everloop_runtime.events import decode

NOW = datetime(2013, 5, 1, tzinfo=UTC)
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
def empty_database(migrated: Callable[[Path], Path]) -> Path:
    """A migrated database file, to copy."""
    return migrated(MIGRATIONS)


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


class Monitor:
    """A monitor of the pipeline `trips`: events in, steps, events out."""

    def __init__(self, database, pipeline, make_batch):
        self.database, self.pipeline, self.make_batch = database, pipeline, make_batch
        self.detectors = FakeDetectors()
        self.now = NOW
        self.rows = 0
        self.events = 0
        self.chunk_rows = 100
        self.restart()

    def restart(self, retry_seconds=1000):
        self.evaluator = Evaluator(
            self.database,
            {self.pipeline.name: self.pipeline},
            self.detectors,
            retry_seconds=retry_seconds,
            attempts=3,
            now=lambda: self.now,
        )

    def _event(self):
        self.events += 1
        return f"event-{self.events}"

    def serve(self, version):
        watch_version(self.database, self._event(), "trips", version, f"run-{version}", self.now)

    def predict(self, rows=100, *, event_id="", **options):
        message = self.make_batch(self.rows, rows, **options)
        self.rows += rows
        log_predictions(
            self.database, event_id or self._event(), message, self.chunk_rows, self.now
        )

    def label(self, first, last):
        """Labels come, and then one of a record that nobody asked about: they have come to rest."""
        self.record({f"r{n}": "true" for n in range(first, last)})
        steps = self.run()
        self.record({"elsewhere": "true"})
        return steps + self.run()

    def record(self, labels, pipeline="trips"):
        ids, values = list(labels), list(labels.values())
        record_actuals(self.database, self._event(), pipeline, ids, values, self.now)

    def run(self):
        steps = 0
        while self.evaluator.step():
            steps += 1
            assert steps < 1000
        return steps

    @property
    def chunks(self):
        with self.database.read() as connection:
            return chunks.newest_evaluated(connection, "trips", 0, None, 500)[::-1]

    @property
    def actions(self):
        with self.database.read() as connection:
            return [d.action for d in decisions.newest(connection, "trips", None, 500)][::-1]

    def sent(self, kind):
        events = []
        for _, _, _, value, headers in self.database.pending(1000):
            names = [(k, v.encode("latin-1")) for k, v in json.loads(headers)]
            event = decode(value, names)
            if isinstance(event.data, kind):
                events.append(event)
        return events


@pytest.fixture
def monitor(database, pipeline, make_batch):
    """A monitor whose version 1 is in Production."""
    monitor = Monitor(database, pipeline, make_batch)
    monitor.serve(1)
    return monitor
