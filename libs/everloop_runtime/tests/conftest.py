"""A service's database as its first migration makes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from everloop_runtime.database import Database

MIGRATION = """
import sqlalchemy as sa
from alembic import op
from everloop_runtime.database import runtime_tables

revision = "0001"
down_revision = None

def upgrade():
    op.create_table("counts", sa.Column("name", sa.String(50), primary_key=True), sa.Column("n", sa.Integer))
    metadata = sa.MetaData()
    runtime_tables(metadata)
    metadata.create_all(op.get_bind())
"""


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "0001_first.py").write_text(MIGRATION)
    return versions.parent


@pytest.fixture
def database(tmp_path: Path, migrations: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'data' / 'service.db'}")
    database.upgrade(migrations)
    yield database
    database.close()


@pytest.fixture
def counts() -> sa.Table:
    """The table of the service that the tests pretend to be."""
    return sa.Table(
        "counts",
        sa.MetaData(),
        sa.Column("name", sa.String(50), primary_key=True),
        sa.Column("n", sa.Integer),
    )
