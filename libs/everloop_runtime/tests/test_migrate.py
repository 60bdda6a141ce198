"""A database is migrated before services start, and one of a newer version is left alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa


def migrate(url: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "everloop_runtime.migrate", "everloop_registry_gateway"],
        env={"EVERLOOP_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_program_migrates_and_leaves_a_newer_schema_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    assert migrate(url).returncode == 0
    engine = sa.create_engine(url)
    assert {"inbox", "outbox", "alembic_version"} <= set(sa.inspect(engine).get_table_names())
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'of-tomorrow'"))
    engine.dispose()

    done = migrate(url)

    assert done.returncode == 0, done.stderr
    assert "of-tomorrow" in done.stderr
