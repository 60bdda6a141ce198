"""Migrations: down and up again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import everloop_monitor
from everloop_runtime.database import Database

MIGRATIONS = Path(everloop_monitor.__file__).parent / "migrations"


def test_every_migration_goes_down_and_up_again(
    database: Database, down_and_up: Callable[..., None]
) -> None:
    down_and_up(database, MIGRATIONS, 8)
