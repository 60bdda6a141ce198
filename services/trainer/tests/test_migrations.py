"""Migrations: down and up again on every database, and no drift from what the code reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import everloop_trainer
from everloop_runtime.database import Database
from everloop_trainer.adapters import store

MIGRATIONS = Path(everloop_trainer.__file__).parent / "migrations"


def test_every_migration_goes_down_and_up_again(
    database: Database, down_and_up: Callable[..., None]
) -> None:
    down_and_up(database, MIGRATIONS, 4)


def test_the_migrations_make_what_the_code_reads(
    database: Database, shape: Callable[[Database], dict[str, set[str]]]
) -> None:
    there = shape(database)
    for table in (store._trainings, store._requests):
        assert {column.name for column in table.columns} <= there[table.name]
