"""Brings a service's database to its newest migration and ends: `python -m everloop_runtime.migrate everloop_ingest`.

Services do the same when they start; a deployment does it before it starts any.
"""

from __future__ import annotations

import sys
from importlib.resources import as_file, files

from pydantic_settings import BaseSettings, SettingsConfigDict

from everloop_runtime import telemetry
from everloop_runtime.database import Database
from everloop_runtime.settings import PREFIX

__all__ = ["main"]


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    database_url: str
    """SQLAlchemy address of the service's database."""


def main() -> int:
    """Migrates; returns the exit status."""
    (package,) = sys.argv[1:]
    telemetry.configure(f"{package}-migration")
    database = Database(_Settings().database_url)
    try:
        with as_file(files(package) / "migrations") as folder:
            database.upgrade(folder)
    finally:
        database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
