"""The gateway's own tables: the truth about which version should serve, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import sqlalchemy as sa

from everloop_registry_gateway.adapters.sql import (
    METADATA,
    NAME,
    SERIAL,
    TIME,
    below,
    moment,
    moment_text,
    of,
)
from everloop_registry_gateway.domain import (
    GateResult,
    ModelVersion,
    Move,
    Request,
    Stage,
    Transition,
)
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["VERSION", "Store", "models", "version_of", "versions"]

models = sa.Table(
    "models",
    METADATA,
    sa.Column("name", NAME, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
versions = sa.Table(
    "model_versions",
    METADATA,
    sa.Column("id", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("model", NAME, sa.ForeignKey("models.name"), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("mirrored_stage", sa.String(16), nullable=False),
    sa.Column("training_id", sa.String(200), nullable=False, unique=True),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("model_uri", sa.Text, nullable=False),
    sa.Column("onnx_sha256", sa.String(64), nullable=False),
    sa.Column("family", sa.String(100), nullable=False),
    sa.Column("metrics", sa.Text, nullable=False),
    sa.Column("dataset_version", sa.BigInteger, nullable=False),
    sa.Column("dataset_tag", sa.String(200), nullable=False),
    sa.Column("cause", sa.String(40), nullable=False),
    sa.Column("gates", sa.Text, nullable=False),
    sa.Column("trained_event_id", sa.String(200), nullable=False),
    sa.Column("training_cause_id", sa.String(200), nullable=False),
    sa.Column("create_time", TIME, nullable=False),
    sa.Column("promote_time", TIME),
    sa.Column("files", sa.Text),
    sa.UniqueConstraint("model", "version", name="uq_model_versions_model_version"),
)
serving = sa.Table(
    "serving",
    METADATA,
    sa.Column("model", NAME, primary_key=True),
    sa.Column("position", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("version", sa.BigInteger, nullable=False),
)
transitions = sa.Table(
    "transitions",
    METADATA,
    sa.Column("model", NAME, primary_key=True),
    sa.Column("move", sa.String(16), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("requested_version", sa.BigInteger, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("cause_id", sa.String(200), nullable=False),
    sa.Column("request_id", sa.String(200), nullable=False),
)
requests = sa.Table(
    "requests",
    METADATA,
    sa.Column("request_id", sa.String(200), primary_key=True),
    sa.Column("move", sa.String(16), nullable=False),
    sa.Column("model", NAME, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("time", TIME, nullable=False),
)
_Row: TypeAlias = Mapping[str, Any] | sa.RowMapping
VERSION = [
    *(column for column in versions.c if column.name not in ("id", "mirrored_stage")),
    models.c.revision,
]
"""Columns, of versions joined with models, that `version_of` reads."""


class Store:
    """Reads and writes of one transaction, or of one reading connection."""

    def __init__(self, connection: sa.Connection) -> None:
        """Works on an open connection."""
        self._connection = connection

    # Models

    def models(self) -> list[str]:
        """Names of all models."""
        return list(self._connection.scalars(sa.select(models.c.name).order_by(models.c.name)))

    def revisions(self) -> list[tuple[str, int]]:
        """Every model's name and revision: whatever happens to a model advances it."""
        query = sa.select(models.c.name, models.c.revision).order_by(models.c.name)
        return [(name, revision) for name, revision in self._connection.execute(query)]

    def etag(self, model: str) -> str:
        """The model's etag; empty if there is no such model."""
        revision = self._connection.scalar(
            sa.select(models.c.revision).where(models.c.name == model)
        )
        return "" if revision is None else str(revision)

    def add_model(self, model: str) -> None:
        """Adds a model where it is missing."""
        if not self.etag(model):
            self._connection.execute(models.insert().values(name=model, revision=1))

    def lock(self, model: str) -> None:
        """Keeps others from changing the model until this transaction ends; what is read after it stays true.

        Where transactions overlap (PostgreSQL) whatever changes a model begins with this. SQLite has one writer.
        """
        self._connection.execute(
            sa.select(models.c.revision).where(models.c.name == model).with_for_update()
        )

    def advance(self, model: str) -> None:
        """Changes the model's etag.

        Raises:
            EverloopError: kind conflict, reason ETAG_MISMATCH: another process changed it since this one looked.
        """
        seen = int(self.etag(model))
        moved = self._connection.execute(
            models.update()
            .where(models.c.name == model, models.c.revision == seen)
            .values(revision=seen + 1)
        )
        if moved.rowcount != 1:
            raise EverloopError(
                Kind.CONFLICT, "ETAG_MISMATCH", f"{model} has changed meanwhile", model=model
            )

    # Versions

    def add_version(self, version: ModelVersion) -> None:
        """Adds a version; its etag is not used."""
        self._connection.execute(
            versions.insert().values(
                model=version.model,
                version=version.version,
                stage=version.stage.value,
                mirrored_stage="",
                training_id=version.training_id,
                run_id=version.run_id,
                model_uri=version.model_uri,
                onnx_sha256=version.onnx_sha256,
                family=version.family,
                metrics=json.dumps(dict(version.metrics)),
                dataset_version=version.dataset_version,
                dataset_tag=version.dataset_tag,
                cause=version.cause,
                gates=json.dumps([asdict(gate) for gate in version.gates]),
                trained_event_id=version.trained_event_id,
                training_cause_id=version.training_cause_id,
                create_time=moment_text(version.create_time),
                files=json.dumps(dict(version.files)),
            )
        )

    def set_stage(
        self, model: str, version: int, stage: Stage, promote_time: datetime | None = None
    ) -> None:
        """Moves a version to a stage."""
        values = {"stage": stage.value} | (
            {"promote_time": moment_text(promote_time)} if promote_time else {}
        )
        self._connection.execute(
            versions.update()
            .where(versions.c.model == model, versions.c.version == version)
            .values(**values)
        )

    def add_gate(self, version: ModelVersion, result: GateResult) -> None:
        """Adds a verdict to those that a version has."""
        self._connection.execute(
            versions.update()
            .where(versions.c.model == version.model, versions.c.version == version.version)
            .values(gates=json.dumps([asdict(gate) for gate in (*version.gates, result)]))
        )

    def version(self, model: str, version: int) -> ModelVersion | None:
        """One version."""
        return next(
            iter(self._versions(versions.c.model == model, versions.c.version == version)), None
        )

    def has_training(self, training_id: str) -> bool:
        """True if the result of a training is registered."""
        return bool(self._versions(versions.c.training_id == training_id))

    def production(self, model: str = "") -> list[ModelVersion]:
        """What is in Production, of one model or of all, by name."""
        found = versions.c.stage == Stage.PRODUCTION.value
        return self._versions(found, of(versions, model), order=versions.c.model)

    def staged(self, model: str) -> list[ModelVersion]:
        """The versions in Staging, newest first."""
        return self._versions(
            versions.c.model == model,
            versions.c.stage == Stage.STAGING.value,
            order=versions.c.version.desc(),
        )

    def page_of_versions(
        self, model: str, before: int | None, size: int, dataset_version: int = 0
    ) -> tuple[list[ModelVersion], str]:
        """Versions, newest first, and the token of the next page (empty at the end).

        Args:
            model: only those of this one; empty for all.
            before: position that the page begins below.
            size: at most this many.
            dataset_version: only those that learned from it; 0 for all.
        """
        learned = versions.c.dataset_version == dataset_version if dataset_version else sa.true()
        query = (
            sa.select(versions.c.id, *VERSION)
            .join(models)
            .where(of(versions, model), learned, below(versions.c.id, before))
            .order_by(versions.c.id.desc())
            .limit(size + 1)
        )
        rows = self._connection.execute(query).mappings().all()
        following = str(rows[size - 1]["id"]) if len(rows) > size else ""
        return [version_of(row) for row in rows[:size]], following

    def count_by_stage(self) -> dict[tuple[str, str], int]:
        """Number of versions by model and stage."""
        query = sa.select(versions.c.model, versions.c.stage, sa.func.count()).group_by(
            versions.c.model, versions.c.stage
        )
        return {(model, stage): number for model, stage, number in self._connection.execute(query)}

    def unmirrored(self, model: str) -> list[tuple[ModelVersion, bool]]:
        """Versions whose stage MLflow has not been told, and whether it was told anything of them yet."""
        query = (
            sa.select(versions.c.mirrored_stage, *VERSION)
            .join(models)
            .where(versions.c.model == model, versions.c.mirrored_stage != versions.c.stage)
        )
        return [
            (version_of(row), bool(row["mirrored_stage"]))
            for row in self._connection.execute(query).mappings()
        ]

    def mirrored(self, version: ModelVersion) -> None:
        """Notes that MLflow has been told the stage of a version."""
        self._connection.execute(
            versions.update()
            .where(versions.c.model == version.model, versions.c.version == version.version)
            .values(mirrored_stage=version.stage.value)
        )

    def _versions(
        self, *where: sa.ColumnElement[bool], order: sa.ColumnElement[Any] = versions.c.id
    ) -> list[ModelVersion]:
        query = sa.select(*VERSION).join(models).where(*where).order_by(order)
        return [version_of(row) for row in self._connection.execute(query).mappings()]

    # What served, the present one on top

    def push_serving(self, model: str, version: int) -> None:
        """Puts a version on top of what served."""
        top = self._connection.scalar(
            sa.select(sa.func.max(serving.c.position)).where(serving.c.model == model)
        )
        self._connection.execute(
            serving.insert().values(model=model, position=(top or 0) + 1, version=version)
        )

    def pop_serving(self, model: str) -> None:
        """Takes the top away."""
        top = (
            sa.select(sa.func.max(serving.c.position))
            .where(serving.c.model == model)
            .scalar_subquery()
        )
        self._connection.execute(
            serving.delete().where(serving.c.model == model, serving.c.position == top)
        )

    def served_before(self, model: str) -> int:
        """The version below the top; 0 if there is none."""
        query = (
            sa.select(serving.c.version)
            .where(serving.c.model == model)
            .order_by(serving.c.position.desc())
            .offset(1)
            .limit(1)
        )
        return self._connection.scalar(query) or 0

    # Transitions

    def pending(self, model: str) -> Transition | None:
        """The model's transition that is decided and not finished."""
        query = transitions.select().where(transitions.c.model == model)
        row = self._connection.execute(query).mappings().one_or_none()
        return Transition(**{**row, "move": Move(row["move"])}) if row else None

    def begin(self, transition: Transition) -> None:
        """Decides a transition; a model has one at a time."""
        self._connection.execute(
            transitions.insert().values(**asdict(transition) | {"move": transition.move.value})
        )

    def end(self, transition: Transition) -> bool:
        """Takes a transition away; False if it is gone already."""
        gone = transitions.delete().where(
            transitions.c.model == transition.model,
            transitions.c.version == transition.version,
            transitions.c.cause_id == transition.cause_id,
        )
        return self._connection.execute(gone).rowcount == 1

    # Answers to requests

    def remember(self, request_id: str, move: Move, requested: int, answer: ModelVersion) -> None:
        """Keeps the answer to a request for a move."""
        query = sa.select(*VERSION).join(models)
        row = self._connection.execute(
            query.where(versions.c.model == answer.model, versions.c.version == answer.version)
        ).mappings()
        self.keep_answer(request_id, move.value, answer.model, requested, dict(row.one()))

    def recall(self, request: Request) -> ModelVersion | None:
        """The first answer to a request for a move; raises as `answer` does."""
        found = self.answer(request.request_id, request.move.value, request.model, request.version)
        return None if found is None else version_of(found)

    def keep_answer(
        self, request_id: str, kind: str, model: str, version: int, answer: Mapping[str, Any]
    ) -> None:
        """Keeps the answer to a request of some kind about a version."""
        self._connection.execute(
            requests.insert().values(
                request_id=request_id,
                move=kind,
                model=model,
                version=version,
                answer=json.dumps(answer),
                time=moment_text(datetime.now(UTC)),
            )
        )

    def answer(
        self, request_id: str, kind: str, model: str, version: int
    ) -> Mapping[str, Any] | None:
        """The first answer to a request; None if it is new, or has no id.

        Raises:
            EverloopError: kind invalid, reason REQUEST_ID_REUSED: the id belongs to a request for something else.
        """
        if not request_id:
            return None
        query = requests.select().where(requests.c.request_id == request_id)
        row = self._connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        if (row["move"], row["model"], row["version"]) != (kind, model, version):
            raise EverloopError(
                Kind.INVALID,
                "REQUEST_ID_REUSED",
                f"request_id {request_id!r} was used for another request: choose a new one",
                field="request_id",
            )
        found: Mapping[str, Any] = json.loads(row["answer"])
        return found

    def forget(self, age: timedelta) -> None:
        """Drops answers older than `age`."""
        limit = moment_text(datetime.now(UTC) - age)
        self._connection.execute(requests.delete().where(requests.c.time < limit))


def version_of(row: _Row) -> ModelVersion:
    """The version of a row."""
    # An answer that was kept before files were recorded has none.
    values: dict[str, Any] = {
        key: row.get(key) for key in ModelVersion.__dataclass_fields__ if key != "etag"
    }
    promoted = row["promote_time"]
    values |= {
        "stage": Stage(row["stage"]),
        "metrics": json.loads(row["metrics"]),
        "files": json.loads(values["files"] or "{}"),
        "gates": tuple(GateResult(**gate) for gate in json.loads(row["gates"])),
        "create_time": moment(row["create_time"]),
        "promote_time": moment(promoted) if promoted else None,
    }
    return ModelVersion(etag=str(row["revision"]), **values)
