"""Model versions that predict or may, and the one in Production."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa

from everloop_monitor.adapters.store.sql import METADATA, naive, upsert

__all__ = [
    "VERSIONS",
    "add_candidate",
    "forget",
    "known",
    "pipelines",
    "production",
    "serving",
    "set_production",
]

VERSIONS = sa.Table(
    "versions",
    METADATA,
    sa.Column("pipeline", sa.String(63), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("run_id", sa.String(64)),
    sa.Column("production", sa.Boolean),
    sa.Column("promoted_at", sa.DateTime),  # null until then: of a version on trial
)


def add_candidate(connection: sa.Connection, pipeline: str, version: int, run_id: str) -> None:
    """Notes a version that may be tried or promoted; one that is known stays as it is."""
    if version not in known(connection, pipeline):
        values = {"pipeline": pipeline, "version": version, "run_id": run_id, "production": False}
        connection.execute(VERSIONS.insert().values(**values))


def set_production(
    connection: sa.Connection, pipeline: str, version: int, run_id: str, now: datetime
) -> None:
    """Makes a version the one in Production."""
    connection.execute(
        VERSIONS.update().where(VERSIONS.c.pipeline == pipeline).values(production=False)
    )
    values = {"run_id": run_id, "production": True, "promoted_at": naive(now)}
    upsert(connection, VERSIONS, [{"pipeline": pipeline, "version": version, **values}])


def production(connection: sa.Connection, pipeline: str) -> int:
    """The version in Production; 0 if none is known."""
    return (
        connection.execute(
            sa.select(VERSIONS.c.version)
            .where(VERSIONS.c.pipeline == pipeline, VERSIONS.c.production)
            # One decision about a pipeline at a time, also with several replicas.
            .with_for_update()
        ).scalar()
        or 0
    )


def serving(connection: sa.Connection, pipeline: str) -> tuple[int, str]:
    """The version in Production and its run; 0 and empty if none is known. Locks nothing."""
    row = connection.execute(
        sa.select(VERSIONS.c.version, VERSIONS.c.run_id).where(
            VERSIONS.c.pipeline == pipeline, VERSIONS.c.production
        )
    ).first()
    return (row.version, row.run_id) if row else (0, "")


def pipelines(connection: sa.Connection) -> set[str]:
    """Names of the pipelines that a version is known of."""
    return set(connection.scalars(sa.select(VERSIONS.c.pipeline).distinct()))


def known(connection: sa.Connection, pipeline: str) -> set[int]:
    """Versions that were promoted or may be."""
    return set(
        connection.scalars(sa.select(VERSIONS.c.version).where(VERSIONS.c.pipeline == pipeline))
    )


def forget(connection: sa.Connection, pipeline: str, versions: Collection[int]) -> None:
    """Forgets versions."""
    connection.execute(
        VERSIONS.delete().where(VERSIONS.c.pipeline == pipeline, VERSIONS.c.version.in_(versions))
    )
