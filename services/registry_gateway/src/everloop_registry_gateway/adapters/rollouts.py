"""Rollouts: which trials run, what their replicas have seen, and how those that ended did."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import reduce
from operator import add
from typing import Any

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
from everloop_registry_gateway.adapters.store import VERSION, models, version_of, versions
from everloop_registry_gateway.domain import (
    ArmTotals,
    ModelVersion,
    Rollout,
    RolloutPlan,
    RolloutReport,
    RolloutState,
    Stage,
    Strategy,
)

__all__ = ["RolloutStore"]

rollouts = sa.Table(
    "rollouts",
    METADATA,
    sa.Column("position", SERIAL, primary_key=True, autoincrement=True),
    sa.Column("id", sa.String(36), nullable=False, unique=True),
    sa.Column("model", NAME, nullable=False),
    sa.Column("candidate_version", sa.BigInteger, nullable=False),
    sa.Column("baseline_version", sa.BigInteger, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("baseline", sa.Text, nullable=False),
    sa.Column("start_time", TIME, nullable=False),
    sa.Column("end_time", TIME),
)
reports = sa.Table(
    "rollout_reports",
    METADATA,
    sa.Column("rollout_id", sa.String(36), primary_key=True),
    sa.Column("replica", sa.String(200), primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("candidate", sa.Text, nullable=False),
    sa.Column("baseline", sa.Text, nullable=False),
    sa.Column("reported_at", TIME),
)


class RolloutStore:
    """Reads and writes of one transaction, or of one reading connection."""

    def __init__(self, connection: sa.Connection) -> None:
        """Works on an open connection."""
        self._connection = connection

    def rollout(self, rollout_id: str) -> Rollout | None:
        """One rollout."""
        return next(iter(self._read(rollouts.c.id == rollout_id)), None)

    def lock(self, rollout_id: str) -> None:
        """Does what `Store.lock` does, for the model of a rollout."""
        model = sa.select(rollouts.c.model).where(rollouts.c.id == rollout_id).scalar_subquery()
        self._connection.execute(
            sa.select(models.c.revision).where(models.c.name == model).with_for_update(of=models)
        )

    def hold(self, rollout_id: str) -> bool:
        """Whether a rollout runs; it then does until this transaction ends."""
        runs = RolloutState.RUNNING.value
        held = self._connection.execute(
            rollouts.update()
            .where(rollouts.c.id == rollout_id, rollouts.c.state == runs)
            .values(state=runs)
        )
        return held.rowcount == 1

    def running(self, model: str = "") -> list[Rollout]:
        """The rollouts that run, of one model (at most one) or of all, by name."""
        return self._read(
            rollouts.c.state == RolloutState.RUNNING.value,
            of(rollouts, model),
            order=rollouts.c.model,
        )

    def served(self, model: str) -> tuple[list[ModelVersion], list[tuple[ModelVersion, Rollout]]]:
        """The versions in Production, and those on trial, of one model or of all, by name.

        One statement, so that a promotion is seen wholly or not at all. The rollouts are without what their replicas
        have reported.
        """
        trials = [column.label(f"trial_{column.name}") for column in rollouts.c]
        on_trial = sa.and_(
            rollouts.c.model == versions.c.model,
            rollouts.c.candidate_version == versions.c.version,
            rollouts.c.state == RolloutState.RUNNING.value,
        )
        query = (
            sa.select(*VERSION, *trials)
            .join(models)
            .outerjoin(rollouts, on_trial)
            .where(
                of(versions, model),
                (versions.c.stage == Stage.PRODUCTION.value) | rollouts.c.id.is_not(None),
            )
            .order_by(versions.c.model)
        )
        serving: list[ModelVersion] = []
        candidates: list[tuple[ModelVersion, Rollout]] = []
        for row in self._connection.execute(query).mappings():
            version = version_of(row)
            if row["trial_id"] is None:
                serving.append(version)
            else:
                trial = {column.name: row[f"trial_{column.name}"] for column in rollouts.c}
                candidates.append((version, _rollout(trial)))
        return serving, candidates

    def page(self, model: str, before: int | None, size: int) -> tuple[list[Rollout], str]:
        """Rollouts, newest first, and the token of the next page (empty at the end)."""
        query = (
            rollouts.select()
            .where(of(rollouts, model), below(rollouts.c.position, before))
            .order_by(rollouts.c.position.desc())
            .limit(size + 1)
        )
        rows = self._connection.execute(query).mappings().all()
        following = str(rows[size - 1]["position"]) if len(rows) > size else ""
        return self._whole(rows[:size]), following

    def count_by_state(self) -> dict[tuple[str, str], int]:
        """Number of rollouts by model and state."""
        query = sa.select(rollouts.c.model, rollouts.c.state, sa.func.count()).group_by(
            rollouts.c.model, rollouts.c.state
        )
        return {(model, state): number for model, state, number in self._connection.execute(query)}

    def add(self, rollout: Rollout) -> None:
        """Adds a rollout; a model has one that runs at a time."""
        self._connection.execute(
            rollouts.insert().values(
                id=rollout.id,
                model=rollout.model,
                candidate_version=rollout.candidate_version,
                baseline_version=rollout.baseline_version,
                plan=_plan_text(rollout.plan),
                state=rollout.state.value,
                reason=rollout.reason,
                candidate=_totals_text(rollout.candidate),
                baseline=_totals_text(rollout.baseline),
                start_time=moment_text(rollout.start_time),
            )
        )

    def end(self, ended: Rollout) -> bool:
        """Ends a rollout and keeps no more of its replicas than the sums; False if it has ended already."""
        assert ended.end_time is not None, "what ends has a time"
        changed = self._connection.execute(
            rollouts.update()
            .where(rollouts.c.id == ended.id, rollouts.c.state == RolloutState.RUNNING.value)
            .values(
                state=ended.state.value,
                reason=ended.reason,
                candidate=_totals_text(ended.candidate),
                baseline=_totals_text(ended.baseline),
                end_time=moment_text(ended.end_time),
            )
        )
        self._connection.execute(reports.delete().where(reports.c.rollout_id == ended.id))
        return changed.rowcount == 1

    # What replicas report

    def last_report(self, rollout_id: str, replica: str) -> RolloutReport | None:
        """What a replica reported last."""
        query = reports.select().where(
            reports.c.rollout_id == rollout_id, reports.c.replica == replica
        )
        row = self._connection.execute(query).mappings().one_or_none()
        if row is None:
            return None
        return RolloutReport(
            rollout_id,
            replica,
            row["sequence"],
            candidate=_totals(row["candidate"]),
            baseline=_totals(row["baseline"]),
        )

    def replicas(self, rollout_id: str) -> int:
        """How many lives of replicas have reported."""
        query = sa.select(sa.func.count()).where(reports.c.rollout_id == rollout_id)
        return self._connection.execute(query).scalar_one()

    def heard(self, rollout_id: str) -> datetime | None:
        """When a replica reported last; None if none has."""
        query = sa.select(sa.func.max(reports.c.reported_at))
        last = self._connection.scalar(query.where(reports.c.rollout_id == rollout_id))
        return moment(last) if last else None

    def set_report(self, report: RolloutReport, now: datetime) -> None:
        """Puts a report that came now in the place of the replica's last one."""
        mine = sa.and_(
            reports.c.rollout_id == report.rollout_id, reports.c.replica == report.replica
        )
        self._connection.execute(reports.delete().where(mine))
        self._connection.execute(
            reports.insert().values(
                rollout_id=report.rollout_id,
                replica=report.replica,
                sequence=report.sequence,
                candidate=_totals_text(report.candidate),
                baseline=_totals_text(report.baseline),
                reported_at=moment_text(now),
            )
        )

    def _read(
        self, *where: sa.ColumnElement[bool], order: sa.ColumnElement[Any] = rollouts.c.position
    ) -> list[Rollout]:
        query = rollouts.select().where(*where).order_by(order)
        return self._whole(self._connection.execute(query).mappings())

    def _whole(self, rows: Iterable[sa.RowMapping]) -> list[Rollout]:
        """The rollouts of the rows; of those that run, with what their replicas have reported."""
        found = [_rollout(row) for row in rows]
        return [
            self._summed(rollout) if rollout.state is RolloutState.RUNNING else rollout
            for rollout in found
        ]

    def _summed(self, rollout: Rollout) -> Rollout:
        query = sa.select(reports.c.candidate, reports.c.baseline).where(
            reports.c.rollout_id == rollout.id
        )
        rows = self._connection.execute(query).all()
        return replace(
            rollout,
            candidate=reduce(add, (_totals(row.candidate) for row in rows), ArmTotals()),
            baseline=reduce(add, (_totals(row.baseline) for row in rows), ArmTotals()),
        )


def _plan_text(plan: RolloutPlan) -> str:
    return json.dumps(asdict(plan) | {"bake": plan.bake.total_seconds()})


def _plan(stored: str) -> RolloutPlan:
    values = json.loads(stored)
    values |= {
        "strategy": Strategy(values["strategy"]),
        "bake": timedelta(seconds=values["bake"]),
    }
    return RolloutPlan(**values)


def _totals_text(totals: ArmTotals) -> str:
    return json.dumps(asdict(totals))


def _totals(stored: str) -> ArmTotals:
    values = json.loads(stored)
    return ArmTotals(**values | {"latency_counts": tuple(values["latency_counts"])})


def _rollout(row: Mapping[str, Any] | sa.RowMapping) -> Rollout:
    end_time: str | None = row["end_time"]
    return Rollout(
        id=row["id"],
        model=row["model"],
        candidate_version=row["candidate_version"],
        baseline_version=row["baseline_version"],
        plan=_plan(row["plan"]),
        state=RolloutState(row["state"]),
        reason=row["reason"],
        candidate=_totals(row["candidate"]),
        baseline=_totals(row["baseline"]),
        start_time=moment(row["start_time"]),
        end_time=moment(end_time) if end_time else None,
    )
