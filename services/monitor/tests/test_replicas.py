"""Replicas leave each other's chunks alone, pipelines take turns, and one that is killed leaves nothing half done."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

import everloop_monitor
from everloop_monitor.adapters.store import chunks, predictions
from everloop_monitor.adapters.store.claims import claimed
from everloop_monitor.evaluate import Evaluator
from everloop_monitor.fakes import FakeDetector, FakeDetectors
from everloop_monitor.record import log_predictions, record_actuals, watch_version
from everloop_runtime.database import Database

NOW = datetime(2013, 5, 1, tzinfo=UTC)
MIGRATIONS = Path(everloop_monitor.__file__).parent / "migrations"


def serve(database, name, make_batch, count, rows=100):
    watch_version(database, f"promoted-{name}", name, 1, "run", NOW)
    for number in range(count):
        batch = make_batch(number * rows, rows, score=0.9, pipeline=name)
        log_predictions(database, f"{name}-{number}", batch, 100, NOW)


def order(database):
    with database.read() as connection:
        found = chunks.newest_evaluated(connection, "", 0, None, 500)
    return [chunk.pipeline for chunk in found]


def test_a_flood_of_one_pipeline_does_not_starve_another(database, make_pipeline, make_batch):
    pipelines = {name: make_pipeline(name=name) for name in ("flood", "brook")}
    serve(database, "flood", make_batch, 20)
    serve(database, "brook", make_batch, 1)
    records = [f"r{n}" for n in range(100)]
    detectors = FakeDetectors()
    evaluator = Evaluator(database, pipelines, detectors, retry_seconds=1)
    for _ in range(2):
        assert evaluator.step()
    assert sorted(order(database)) == ["brook", "flood"]
    record_actuals(database, "labels", "brook", records, ["true"] * 100, NOW)
    for _ in range(2):
        assert evaluator.step()
    with database.read() as connection:
        (brook,) = chunks.newest_evaluated(connection, "brook", 0, None, 5)
    assert brook.report and brook.report.realised, "also its labels have their turn"


@pytest.fixture
def shared(postgresql):
    """Two connections to one PostgreSQL, as of two replicas."""
    url = postgresql()
    replicas = [Database(url), Database(url)]
    replicas[0].upgrade(MIGRATIONS)
    yield replicas
    for database in replicas:
        database.close()


def test_a_chunk_is_held_by_one_replica_until_it_ends(shared):
    first, second = shared
    with claimed(first, 7) as mine:
        assert mine
        with claimed(second, 7) as theirs, claimed(second, 8) as other:
            assert (theirs, other) == (False, True)
    with claimed(second, 7) as theirs:
        assert theirs


def test_two_replicas_evaluate_each_chunk_once_and_at_the_same_time(
    shared, make_pipeline, make_batch
):
    pipelines = {"trips": make_pipeline()}
    serve(shared[0], "trips", make_batch, 6)
    both, read = threading.Barrier(2, timeout=20), []

    class Together(FakeDetector):
        """Goes on when both replicas read a chunk."""

        def read(self, rows):
            read.append(rows.record_ids[0])
            both.wait()
            return super().read(rows)

    def work(database):
        evaluator = Evaluator(database, pipelines, FakeDetectors(Together()), retry_seconds=1000)
        for _ in range(3):
            assert evaluator.step()

    threads = [threading.Thread(target=work, args=(database,)) for database in shared]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == [f"r{n}00" if n else "r0" for n in range(6)]
    assert order(shared[0]) == ["trips"] * 6


FEEDER = """
import sys
from datetime import UTC, datetime
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_monitor.record import log_predictions
from everloop_runtime.database import Database
database = Database(sys.argv[1])
for number in range(int(sys.argv[2])):
    first = number * 37
    message = PredictionsLogged(
        pipeline="trips", model_version=1,
        prediction_ids=[f"00000000000000aa-{n:x}" for n in range(first, first + 37)],
        time_micros=list(range(37)), scores=[0.5] * 37,
    )
    log_predictions(database, f"event-{number}", message, 100, datetime.now(UTC))
    print(number, flush=True)
"""


@pytest.mark.slow
def test_a_replica_that_is_killed_counts_every_row_once(database, database_path: Path):
    """kill -9 while events are stored, again and again; what was not committed to Kafka comes again, and more."""
    events = 30
    command = [sys.executable, "-c", FEEDER, f"sqlite:///{database_path}", str(events)]
    for after in (3, 14):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as feeder:
            assert feeder.stdout is not None
            while int(feeder.stdout.readline()) < after:
                pass
            time.sleep(0.001 * after)  # somewhere within an event
            os.kill(feeder.pid, signal.SIGKILL)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    with database.read() as connection:
        counted = predictions.stream(connection, "trips", 1, lock=False)
        stored = predictions.of_rows(connection, "trips", 1, 0, counted.rows)
    assert counted.rows == events * 37
    assert counted.chunks == events * 37 // 100
    assert [batch.event_id for batch in stored] == [f"event-{n}" for n in range(events)]
    ids = [one for batch in stored for one in batch.open().prediction_ids]
    assert len(ids) == len(set(ids)) == counted.rows
