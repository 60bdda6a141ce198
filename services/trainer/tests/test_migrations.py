"""Migrations: down and up again on every database, and no drift from what the code reads."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

import everloop_trainer
from everloop_runtime.database import Database
from everloop_trainer.adapters import store

MIGRATIONS = Path(everloop_trainer.__file__).parent / "migrations"


def shape(database: Database) -> dict[str, set[str]]:
    """Tables and their columns."""
    inspector = sa.inspect(database.engine)
    return {
        table: {column["name"] for column in inspector.get_columns(table)}
        for table in inspector.get_table_names()
    }


def test_every_migration_goes_down_and_up_again(database: Database) -> None:
    config = database.alembic(MIGRATIONS)
    newest = shape(database)
    revisions = list(ScriptDirectory.from_config(config).walk_revisions())
    assert len(revisions) >= 4
    for _ in revisions:
        below = shape(database)
        command.downgrade(config, "-1")
        assert shape(database) != below
    assert set(shape(database)) == {"alembic_version"}
    for _ in revisions:
        command.upgrade(config, "+1")
    assert shape(database) == newest


def test_the_migrations_make_what_the_code_reads(database: Database) -> None:
    there = shape(database)
    for table in (store._trainings, store._requests):
        assert {column.name for column in table.columns} <= there[table.name]
