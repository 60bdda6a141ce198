"""Migrations: down and up again on every database; a database of an earlier version keeps what it holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

import everloop_ingest
from everloop_ingest.adapters.store.cuts import Cuts
from everloop_ingest.adapters.store.requests import Requests
from everloop_ingest.adapters.store.sql import METADATA
from everloop_ingest.adapters.store.versions import Versions
from everloop_ingest.domain import State
from everloop_runtime.database import Database
from everloop_runtime.leases import Leases

MIGRATIONS = Path(everloop_ingest.__file__).parent / "migrations"


def test_every_migration_goes_down_and_up_again(
    make_database: Callable[[Path], Database],
    tmp_path: Path,
    shape: Callable[[Database], dict[str, set[str]]],
    down_and_up: Callable[..., None],
) -> None:
    database = make_database(tmp_path)
    newest = shape(database)
    made = {table: {*columns.columns.keys()} for table, columns in METADATA.tables.items()}
    assert {table: newest[table] for table in made} == made
    of_the_runtime = {"alembic_version", "inbox", "outbox", "cut_leases"}
    assert newest.keys() - made.keys() == of_the_runtime
    down_and_up(database, MIGRATIONS, 12)
    database.close()


def test_a_database_of_the_first_version_is_brought_up(tmp_path: Path) -> None:
    first = tmp_path / "migrations" / "versions"
    first.mkdir(parents=True)
    [path] = (MIGRATIONS / "versions").glob("0001_*.py")
    shutil.copy(path, first)
    database = Database(f"sqlite:///{tmp_path / 'ingest.db'}")
    database.upgrade(first.parent)
    with database.unit_of_work() as work:
        for statement in (
            "INSERT INTO shards VALUES (1, 'p', 't', 0, 0, 9, 'k', 10, 0, 0, 99, NULL, NULL, '2026-01-01', NULL)",
            "INSERT INTO versions (pipeline, number, state, cause_id, create_time, shards)"
            " VALUES ('p', 1, 'CUTTING', 'r1', '2026-01-01 00:00:00', 1)",
            "INSERT INTO cut_requests VALUES ('p', 'r1', 1)",
        ):
            work.connection.execute(sa.text(statement))
    database.upgrade(MIGRATIONS)

    requests = Requests(database)
    version = Versions(database).requested("p", "r1")
    assert version is not None
    assert (version.state, version.error) == (State.CUTTING, "")
    assert Cuts(database, Leases(database, "cut_leases")).unversioned("p").records == 10
    # What was asked before counts from the upgrade.
    assert requests.forget(datetime.now(UTC) - timedelta(days=1), 10) == 0
    assert requests.forget(datetime.now(UTC) + timedelta(days=1), 10) == 1
    database.close()
