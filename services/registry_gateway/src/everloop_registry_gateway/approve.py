"""Approval by a person: a version that waits in Staging goes its way, is rejected, or is put away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from everloop_contracts.pipeline import Pipeline
from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.domain import (
    APPROVAL,
    Act,
    GateResult,
    ModelVersion,
    Ruling,
    Stage,
)
from everloop_registry_gateway.promote import Promoter, check_unchanged, find
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Approvals"]

log = logging.getLogger(__name__)

DONE = {Act.APPROVE: "approved", Act.REJECT: "rejected", Act.ARCHIVE: "archived"}
OUTCOMES = {Act.REJECT: Stage.REJECTED, Act.ARCHIVE: Stage.ARCHIVED}


class Approvals:
    """What people do with versions in Staging."""

    def __init__(
        self,
        database: Database,
        promoter: Promoter,
        pipelines: Mapping[str, Pipeline],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Takes the gateway's database, what promotes, and the pipelines by name."""
        self._database = database
        self._promoter = promoter
        self._pipelines = pipelines
        self._now = now

    def rule(self, ruling: Ruling) -> ModelVersion:
        """Does with a version what a person says, and returns it as it is then; a repeat changes nothing.

        An approved version is promoted at once, or tried where its pipeline has a rollout and another one serves.

        Raises:
            EverloopError: kind not_found; conflict (the etag is not the current one, or a move is under way);
                precondition (the version does not wait in Staging, or is on trial); invalid (the request id belongs to
                another request); unavailable (MLflow does not answer; repeating is safe).
        """
        with self._database.read() as connection:
            find(Store(connection), ruling.model, ruling.version)
        with self._promoter.turn(ruling.model):
            self._promoter.settle(ruling.model)
            if not self._answered(ruling):
                self._check_mlflow(ruling)
                with self._database.unit_of_work() as work:
                    self._decide(work, ruling)
                self._promoter.settle(ruling.model)
        with self._database.read() as connection:
            return find(Store(connection), ruling.model, ruling.version)

    def _answered(self, ruling: Ruling) -> bool:
        with self._database.read() as connection:
            return _answer(Store(connection), ruling)

    def _check_mlflow(self, ruling: Ruling) -> None:
        """Raises what stands against the ruling in MLflow; what was deleted or changed there can still be rejected."""
        with self._database.read() as connection:
            version = find(Store(connection), ruling.model, ruling.version)
        try:
            self._promoter.check(version)
        except EverloopError as error:
            if ruling.act is Act.APPROVE or error.kind is Kind.UNAVAILABLE:
                raise

    def _decide(self, work: UnitOfWork, ruling: Ruling) -> None:
        store = Store(work.connection)
        store.lock(ruling.model)
        if _answer(store, ruling):
            return
        check_unchanged(store, ruling.model, ruling.etag)
        version = find(store, ruling.model, ruling.version)
        _check_waits(RolloutStore(work.connection), version)
        verdict = GateResult(APPROVAL, ruling.act is Act.APPROVE, _told(ruling))
        store.advance(version.model)
        if ruling.act is not Act.ARCHIVE:
            store.add_gate(version, verdict)
        if ruling.act in OUTCOMES:
            store.set_stage(version.model, version.version, OUTCOMES[ruling.act])
        Trail(work.connection).note(
            version.model,
            version.version,
            DONE[ruling.act],
            actor=ruling.actor,
            reason=ruling.reason,
            cause_id=ruling.request_id,
            evidence=version.gates,
        )
        if ruling.act is Act.APPROVE:
            pipeline = self._pipelines.get(version.model)
            trial.send_on(
                work,
                version,
                pipeline.promotion.rollout if pipeline else None,
                actor=ruling.actor,
                reason=verdict.message,
                cause_id=ruling.request_id,
                now=self._now(),
            )
        if ruling.request_id:
            store.keep_answer(
                ruling.request_id, ruling.act.value, version.model, version.version, {}
            )
        log.info("version %d of %s was %s", version.version, version.model, verdict.message)


def _answer(store: Store, ruling: Ruling) -> bool:
    """True if the request was carried out before."""
    asked = (ruling.request_id, ruling.act.value, ruling.model, ruling.version)
    return store.answer(*asked) is not None


def _check_waits(rollouts: RolloutStore, version: ModelVersion) -> None:
    named = {"model": version.model, "version": str(version.version)}
    if version.stage is not Stage.STAGING:
        raise EverloopError(
            Kind.PRECONDITION,
            "NOT_IN_STAGING",
            f"version {version.version} of {version.model} is {version.stage}: nobody waits for a ruling on it",
            **named,
        )
    for running in rollouts.running(version.model):
        if running.candidate_version == version.version:
            raise EverloopError(
                Kind.PRECONDITION,
                "ON_TRIAL",
                f"version {version.version} of {version.model} is on trial: end rollout {running.id} instead",
                rollout=running.id,
                **named,
            )


def _told(ruling: Ruling) -> str:
    done = f"{DONE[ruling.act]} by {ruling.actor}"
    return f"{done}: {ruling.reason}" if ruling.reason else done
