"""Nothing grows without a bound, and what is kept stays usable."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

import everloop_monitor
from everloop_monitor import retention
from everloop_monitor.adapters.store import decisions, labels, predictions, versions
from everloop_monitor.adapters.store.sql import METADATA
from everloop_monitor.domain import Request, span_of
from everloop_monitor.retention import Bounds, keep_within_bounds
from everloop_monitor.stream import Stream
from everloop_runtime.database import Database

NOW = datetime(2013, 5, 1, tzinfo=UTC)
MIGRATIONS = Path(everloop_monitor.__file__).parent / "migrations"
ROOMY = Bounds(
    retained_rows=10**6,
    retained_labels=10**6,
    retained_label_days=90,
    waiting_chunks=50,
    retained_chunks=10**6,
    retained_decisions=10**6,
    retained_versions=100,
)
GOOD, BAD = 0.9, 0.5


def bound(monitor, now=NOW, **bounds):
    """Deletes until nothing is beyond the bounds; returns the rounds that it took."""
    rounds = 0
    while keep_within_bounds(monitor.database, replace(ROOMY, **bounds), now):
        rounds += 1
        assert rounds < 1000
    return rounds


def labels_left(monitor, *records, pipeline="trips"):
    with monitor.database.read() as connection:
        return labels.known(connection, pipeline, records)


def sizes(database):
    """Rows of every table of the monitor's own."""
    with database.read() as connection:
        return {
            name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar()
            for name, table in METADATA.tables.items()
        }


def test_the_tables_are_those_that_the_migrations_make(database):
    made = sa.inspect(database.engine)
    for name, table in METADATA.tables.items():
        assert {c["name"] for c in made.get_columns(name)} == set(table.columns.keys()), name
        assert made.get_pk_constraint(name)["constrained_columns"] == list(
            table.primary_key.columns.keys()
        )


def test_labels_survive_the_upgrade_with_the_day_they_came(tmp_path):
    (tmp_path / "first" / "versions").mkdir(parents=True)
    shutil.copy(MIGRATIONS / "versions" / "0001_initial.py", tmp_path / "first" / "versions")
    database = Database(f"sqlite:///{tmp_path / 'monitor.db'}")
    database.upgrade(tmp_path / "first")
    day = NOW.timestamp() // 86400
    with database.unit_of_work() as work:
        insert = sa.text("INSERT INTO actuals VALUES ('trips', 'r1', 'true', :day)")
        work.connection.execute(insert, {"day": day})
    database.upgrade(MIGRATIONS)
    with database.unit_of_work() as work:
        assert labels.drop_oldest(work.connection, "trips", 0, NOW, 10) == 0
        assert labels.known(work.connection, "trips", ["r1"]) == {"r1": "true"}
        later = NOW + timedelta(days=1)
        assert labels.drop_oldest(work.connection, "trips", 0, later, 10) == 1
    database.close()


def test_without_anything_beyond_the_bounds_nothing_goes(monitor):
    for _ in range(3):
        monitor.predict(100, score=BAD)
    monitor.label(0, 300)
    before = sizes(monitor.database)
    assert bound(monitor) == 0
    assert sizes(monitor.database) == before


def test_the_oldest_predictions_go_and_their_chunks_are_closed(monitor):
    for _ in range(5):
        monitor.predict(100, score=BAD)
    monitor.run()
    bound(monitor, retained_rows=250)
    monitor.label(0, 500)
    assert [chunk.index for chunk in monitor.chunks if chunk.report.realised] == [3, 4]
    assert len(monitor.chunks) == 5


def test_a_kept_prediction_is_found_with_its_label_and_a_deleted_one_is_not(monitor):
    for _ in range(4):
        monitor.predict(100, score=GOOD)
    monitor.label(0, 400)
    bound(monitor, retained_rows=200)
    with monitor.database.read() as connection:
        found = {
            n: len(list(predictions.covering(connection, span_of(f"00000000000000aa-{n:x}"))))
            for n in (0, 199, 200, 399)
        }
    assert found == {0: 0, 199: 0, 200: 1, 399: 1}
    assert labels_left(monitor, "r200", "r399") == {"r200": "true", "r399": "true"}


def test_an_open_chunk_that_loses_rows_starts_again_at_the_first_that_is_left(monitor):
    monitor.predict(60, version=7)  # few ask version 7
    for _ in range(3):
        monitor.predict(100)
    bound(monitor, retained_rows=300)
    with monitor.database.read() as connection:
        assert predictions.stream(connection, "trips", 7) == Stream(
            rows=60, chunks=0, chunk_start=60
        )
    monitor.serve(7)
    monitor.predict(99, version=7)
    monitor.run()
    assert "trips/7/0" not in [chunk.id for chunk in monitor.chunks]
    monitor.predict(1, version=7)
    monitor.run()
    (chunk,) = [chunk for chunk in monitor.chunks if chunk.version == 7]
    assert (chunk.id, chunk.first_row, chunk.rows) == ("trips/7/0", 60, 100)
    assert chunk.report.estimated.value == pytest.approx(GOOD), "of all its rows"


def test_chunks_whose_version_never_comes_go_with_their_rows_and_are_counted(monitor):
    for _ in range(3):
        monitor.predict(100, version=9)
    name = "everloop_monitor_unevaluated_chunks_total"
    before = REGISTRY.get_sample_value(name, {"pipeline": "trips"}) or 0.0
    bound(monitor, retained_rows=100)
    assert REGISTRY.get_sample_value(name, {"pipeline": "trips"}) == before + 2
    monitor.serve(9)
    monitor.run()
    assert [chunk.id for chunk in monitor.chunks] == ["trips/9/2"]


def test_only_the_newest_chunks_wait_for_labels(monitor):
    for _ in range(5):
        monitor.predict(100, score=GOOD)
    monitor.run()
    bound(monitor, waiting_chunks=2)
    monitor.label(0, 500)
    assert [chunk.index for chunk in monitor.chunks if chunk.report.realised] == [3, 4]


def test_what_is_known_of_a_chunk_is_forgotten_with_it(monitor):
    for _ in range(6):
        monitor.predict(100, score=GOOD)
        monitor.label(0, 10)
        bound(monitor, waiting_chunks=2)
    assert len(monitor.evaluator._counts) <= 3


def test_labels_go_by_age_whether_their_predictions_came_or_not(monitor):
    monitor.predict(3)
    monitor.record({"r0": "true", "r1": "true", "nobody asked": "true"})
    monitor.now = NOW + timedelta(days=30)
    monitor.record({"r1": "false"})  # came again
    bound(monitor, now=NOW + timedelta(days=90))
    assert len(labels_left(monitor, "r0", "r1", "nobody asked")) == 3
    bound(monitor, now=NOW + timedelta(days=91))
    assert labels_left(monitor, "r0", "r1", "nobody asked") == {"r1": "false"}


def test_labels_beyond_the_newest_go_however_young(monitor):
    for number in range(10):
        monitor.now = NOW + timedelta(seconds=number)
        monitor.record({f"a{number}": "true", f"b{number}": "true"})
    monitor.record({"elsewhere": "true"}, pipeline="trips")
    bound(monitor, retained_labels=5)
    left = labels_left(monitor, "elsewhere", *(f"{x}{n}" for x in "ab" for n in range(10)))
    assert set(left) == {"elsewhere", "a8", "b8", "a9", "b9"}


def test_settled_chunks_beyond_the_newest_go_and_waiting_ones_stay(monitor):
    for _ in range(5):
        monitor.predict(100)
    monitor.label(100, 500)  # the first chunk still waits
    bound(monitor, retained_chunks=2)
    assert [chunk.index for chunk in monitor.chunks] == [0, 3, 4]
    monitor.predict(100)
    monitor.run()
    assert monitor.chunks[-1].id == "trips/1/5", "numbers go on"


def test_decisions_and_requests_beyond_the_newest_go(monitor):
    for number in range(6):
        monitor.predict(100, score=BAD)
        monitor.label(number * 100, number * 100 + 100)
        monitor.now += timedelta(hours=7)
    with monitor.database.read() as connection:
        made = decisions.request_ids(connection, "trips", 1)
        last = decisions.newest_requests(connection, "trips", 1)
    assert len(made) > 2
    bound(monitor, retained_decisions=2)
    assert len(monitor.actions) == 2
    with monitor.database.read() as connection:
        assert len(decisions.request_ids(connection, "trips", 1)) == 2
        assert decisions.newest_requests(connection, "trips", 1) == last


def test_old_versions_are_forgotten_when_nothing_else_of_them_is_left(monitor):
    monitor.predict(50)  # of version 1
    for version in range(2, 8):
        monitor.serve(version)
    monitor.serve(3)  # a rollback
    bound(monitor, retained_versions=2)
    with monitor.database.read() as connection:
        assert versions.known(connection, "trips") == {1, 3, 6, 7}
        assert versions.production(connection, "trips") == 3
    monitor.predict(100, version=7)
    bound(monitor, retained_versions=2, retained_rows=100)
    with monitor.database.read() as connection:
        assert versions.known(connection, "trips") == {3, 6, 7}
        assert predictions.counted_versions(connection, "trips") == {7}


def test_a_version_with_a_chunk_or_a_decision_or_a_request_stays(monitor):
    monitor.predict(100)
    monitor.run()
    request = Request("id", "trips", 2, "trips/2/0", "why", NOW)
    with monitor.database.unit_of_work() as work:
        decisions.add_request(work.connection, request)
    for version in range(2, 6):
        monitor.serve(version)
    bound(monitor, retained_versions=1, retained_rows=1)
    with monitor.database.read() as connection:
        assert versions.known(connection, "trips") == {1, 2, 5}


def test_a_pipeline_that_is_no_longer_declared_is_bounded_too(monitor):
    for _ in range(3):
        monitor.predict(100, pipeline="removed")
    monitor.record({"r0": "true"}, pipeline="removed")
    bound(monitor, NOW + timedelta(days=91), retained_rows=100)
    with monitor.database.read() as connection:
        assert len(list(predictions.covering(connection, span_of("00000000000000aa-0")))) == 0
        assert len(list(predictions.covering(connection, span_of("00000000000000aa-c8")))) == 1
    assert labels_left(monitor, "r0", pipeline="removed") == {}


def test_what_one_transaction_deletes_is_bounded(monitor, monkeypatch):
    monkeypatch.setattr(retention, "_ROWS_AT_ONCE", 10)
    monkeypatch.setattr(retention, "_BATCHES_AT_ONCE", 2)
    for _ in range(9):
        monitor.predict(10)
    monitor.record({f"r{n}": "true" for n in range(95)})
    tight = replace(ROOMY, retained_rows=30, retained_labels=5)
    left = []
    while keep_within_bounds(monitor.database, tight, NOW):
        table = sizes(monitor.database)
        left.append((table["batches"], table["actuals"]))
    assert left[:4] == [(7, 85), (5, 75), (3, 65), (3, 55)]
    assert left[-1] == (3, 5)


def test_a_long_life_leaves_tables_of_the_same_size(monitor):
    """Everything that can grow grows here: rows, labels nobody asked for, chunks, requests, versions."""

    def live(rounds):
        for _ in range(rounds):
            monitor.now += timedelta(hours=40)
            version = 1 + monitor.rows // 400
            monitor.serve(version)
            first = monitor.rows
            monitor.predict(100, score=BAD, x=0.9, version=version)
            monitor.record({f"nobody {monitor.events}": "true"})
            monitor.label(first, first + 100)
            bound(
                monitor,
                retained_rows=500,
                retained_labels=300,
                waiting_chunks=2,
                retained_chunks=4,
                retained_decisions=6,
                retained_versions=3,
            )

    live(30)
    once = sizes(monitor.database)
    live(30)
    assert sizes(monitor.database) == once
    assert max(once.values()) <= 300
