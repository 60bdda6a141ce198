"""Migrations: down and up again on every database, and what they make of rows that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

import everloop_registry_gateway
from everloop_registry_gateway.adapters.sql import METADATA
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.chain import GENESIS

MIGRATIONS = Path(everloop_registry_gateway.__file__).parent / "migrations"


def test_every_migration_goes_down_and_up_again(database, down_and_up):
    down_and_up(database, MIGRATIONS, 4)


def test_the_migrations_make_what_the_code_reads(database, shape):
    there = shape(database)
    for table in METADATA.tables.values():
        assert {column.name for column in table.columns} <= there[table.name]


@pytest.mark.parametrize("entries", [0, 5])
def test_entries_from_before_the_chain_get_their_links(database, entries):
    config = database.alembic(MIGRATIONS)
    command.downgrade(config, "0003")
    with database.unit_of_work() as work:
        for number in range(entries):
            work.connection.execute(
                sa.text(
                    "INSERT INTO audit (model, version, action, actor, reason, cause_id, time) VALUES "
                    "('late', :number, 'promoted', 'ada', 'größer', '', '2026-01-01T00:00:00.000000+00:00')"
                ),
                {"number": number},
            )
    command.upgrade(config, "head")
    with database.unit_of_work() as work:
        trail = Trail(work.connection)
        assert (trail.verify().entries, trail.verify().problem) == (entries, "")
        assert (trail.verify().head == GENESIS) == (not entries)
        trail.note("late", 9, "promoted", actor="ada", reason="", cause_id="")
        assert (trail.verify().entries, trail.verify().problem) == (entries + 1, "")
