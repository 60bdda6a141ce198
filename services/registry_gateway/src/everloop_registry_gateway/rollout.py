"""Rollouts by hand: a person puts a version on trial, promotes it or takes it back."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from everloop_contracts import pipeline
from everloop_contracts.pipeline import Pipeline
from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.domain import (
    ArmTotals,
    ModelVersion,
    Rollout,
    RolloutPlan,
    RolloutState,
    Stage,
)
from everloop_registry_gateway.promote import Promoter, check_gates, check_unchanged, find
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["EndRequest", "Rollouts", "StartRequest", "find_rollout"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StartRequest:
    """Somebody asks for a version in Staging to be put on trial.

    Attributes:
        plan: how; None for what the pipeline says, or a canary with the specification's defaults where it says nothing.
        request_id: a repeat returns the first answer; empty for no such protection.
    """

    model: str
    version: int
    plan: RolloutPlan | None = None
    request_id: str = ""
    actor: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EndRequest:
    """Somebody asks for a rollout to end.

    Attributes:
        promote: True to promote the candidate, False to take it back.
        request_id: a repeat returns the first answer; empty for no such protection.
    """

    rollout_id: str
    promote: bool
    request_id: str = ""
    actor: str = ""
    reason: str = ""

    @property
    def kind(self) -> str:
        """What its answer is kept as."""
        return "promote_rollout" if self.promote else "abort_rollout"


def find_rollout(rollouts: RolloutStore, rollout_id: str) -> Rollout:
    """One rollout.

    Raises:
        EverloopError: kind not_found, reason ROLLOUT_NOT_FOUND.
    """
    found = rollouts.rollout(rollout_id)
    if found is None:
        raise EverloopError(
            Kind.NOT_FOUND, "ROLLOUT_NOT_FOUND", f"there is no rollout {rollout_id!r}"
        )
    return found


class Rollouts:
    """What people do with rollouts."""

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

    def start(self, request: StartRequest) -> Rollout:
        """Puts a version on trial beside the one in Production; an older one on trial is superseded.

        Raises:
            EverloopError: kind not_found; invalid (the plan, or the request id belongs to another request);
                precondition (the version is not in Staging, nothing is in Production, or a newer version or this one
                is on trial); unavailable (MLflow does not answer and a move is half done; repeating is safe).
        """
        declared = self._pipelines.get(request.model)
        plan = request.plan or trial.declared(
            (declared and declared.promotion.rollout) or pipeline.Rollout(strategy="canary")
        )
        _check(plan, declared)
        with self._database.read() as connection:
            if answer := self._begun(Store(connection), RolloutStore(connection), request):
                return answer
            find(Store(connection), request.model, request.version)
        with self._promoter.turn(request.model):
            self._promoter.settle(request.model)
            with self._database.unit_of_work() as work:
                return self._start(work, request, plan)

    def end(self, request: EndRequest) -> Rollout:
        """Promotes the candidate of a rollout, or takes it back. Ending again what has ended so changes nothing.

        Taking back does not need MLflow.

        Raises:
            EverloopError: kind not_found; invalid (the request id belongs to another request); precondition (it has
                ended otherwise); conflict (another move of the model is decided); unavailable (MLflow does not answer:
                a promotion that was decided is finished when it does, and repeating is safe).
        """
        with self._database.read() as connection:
            rollout = find_rollout(RolloutStore(connection), request.rollout_id)
            model = rollout.model
        if request.promote:
            with self._promoter.turn(model):
                self._promoter.settle(model)
                if rollout.state is RolloutState.RUNNING:
                    with self._database.read() as connection:
                        candidate = find(Store(connection), model, rollout.candidate_version)
                    self._promoter.check(candidate)
                self._decide(request)
                self._promoter.settle(model)
        else:
            self._decide(request)
            self._tell(model)
        with self._database.read() as connection:
            return find_rollout(RolloutStore(connection), request.rollout_id)

    def _begun(self, store: Store, rollouts: RolloutStore, request: StartRequest) -> Rollout | None:
        """The first answer to a request: the rollout as it began."""
        answer = store.answer(request.request_id, "start_rollout", request.model, request.version)
        if answer is None:
            return None
        # An answer from before the plan was kept matches any.
        if answer.get("asked", asked := _asked(request)) != asked:
            raise EverloopError(
                Kind.INVALID,
                "REQUEST_ID_REUSED",
                f"request_id {request.request_id!r} was used for another plan: choose a new one",
                field="request_id",
            )
        return replace(
            find_rollout(rollouts, answer["rollout"]),
            state=RolloutState.RUNNING,
            reason="",
            candidate=ArmTotals(),
            baseline=ArmTotals(),
            end_time=None,
        )

    def _start(self, work: UnitOfWork, request: StartRequest, plan: RolloutPlan) -> Rollout:
        store, rollouts = Store(work.connection), RolloutStore(work.connection)
        store.lock(request.model)
        if answer := self._begun(store, rollouts, request):
            return answer
        candidate = find(store, request.model, request.version)
        baseline = _startable(store, rollouts, candidate)
        rollout = trial.begin(
            work,
            request.model,
            request.version,
            baseline,
            plan,
            actor=request.actor,
            reason=request.reason,
            cause_id=request.request_id,
            now=self._now(),
        )
        store.advance(request.model)
        if request.request_id:
            answer_kept = {"rollout": rollout.id, "asked": _asked(request)}
            store.keep_answer(
                request.request_id, "start_rollout", request.model, request.version, answer_kept
            )
        return rollout

    def _decide(self, request: EndRequest) -> None:
        with self._database.unit_of_work() as work:
            store, rollouts = Store(work.connection), RolloutStore(work.connection)
            rollouts.lock(request.rollout_id)
            rollout = find_rollout(rollouts, request.rollout_id)
            asked = (request.request_id, request.kind, rollout.model, rollout.candidate_version)
            if store.answer(*asked) is not None:
                return
            if rollout.state is RolloutState.RUNNING:
                self._end(work, rollout, request)
            elif rollout.state is not _outcome(request):
                raise EverloopError(
                    Kind.PRECONDITION,
                    "ROLLOUT_ENDED",
                    f"rollout {rollout.id} has ended, its candidate was {rollout.state}: {rollout.reason}",
                    state=rollout.state.value,
                )
            if request.request_id:
                store.keep_answer(*asked, {"rollout": rollout.id})

    def _end(self, work: UnitOfWork, rollout: Rollout, request: EndRequest) -> None:
        check_unchanged(Store(work.connection), rollout.model, etag="")
        cause_id = request.request_id or rollout.id
        if request.promote:
            trial.promote(
                work, rollout, actor=request.actor, reason=request.reason, cause_id=cause_id
            )
            return
        why = f"aborted by {request.actor}" + (f": {request.reason}" if request.reason else "")
        trial.abort(
            work,
            rollout,
            "person",
            why,
            actor=request.actor,
            cause_id=cause_id,
            now=self._now(),
        )

    def _tell(self, model: str) -> None:
        """Tells MLflow what it can be told now; the reconciler does it otherwise."""
        try:
            with self._promoter.turn(model):
                self._promoter.settle(model)
        except EverloopError as error:
            log.warning("%s is settled later: %s", model, error)


def _asked(request: StartRequest) -> dict[str, Any] | None:
    """The plan that a request names, as it is kept with its answer; None where it leaves that to the pipeline."""
    plan = request.plan
    return asdict(plan) | {"bake": plan.bake.total_seconds()} if plan else None


def _outcome(request: EndRequest) -> RolloutState:
    return RolloutState.PROMOTED if request.promote else RolloutState.ABORTED


def _startable(store: Store, rollouts: RolloutStore, candidate: ModelVersion) -> int:
    """The version that a candidate would stand beside; raises what stands against the trial."""
    model = candidate.model
    check_gates(candidate)
    if candidate.stage is not Stage.STAGING:
        raise EverloopError(
            Kind.PRECONDITION,
            "NOT_IN_STAGING",
            f"version {candidate.version} of {model} is {candidate.stage}: a trial starts from staging",
            model=model,
            version=str(candidate.version),
        )
    serving = store.production(model)
    if not serving:
        raise EverloopError(
            Kind.PRECONDITION,
            "NOTHING_IN_PRODUCTION",
            f"{model} has no version in Production to be tried beside: promote version {candidate.version}",
            model=model,
        )
    for running in rollouts.running(model):
        if running.candidate_version >= candidate.version:
            raise EverloopError(
                Kind.PRECONDITION,
                "ROLLOUT_RUNNING",
                f"version {running.candidate_version} of {model} is on trial: end rollout {running.id} first",
                model=model,
                rollout=running.id,
            )
    return serving[0].version


def _check(plan: RolloutPlan, declared: Pipeline | None) -> None:
    """Raises what is wrong with a plan, under the name of its field."""
    ratio = plan.max_latency_ratio
    wrong = {
        "percent": "must be above 0 and at most 100" if not 0 < plan.percent <= 100 else "",
        "bake": "must not be negative" if plan.bake < timedelta(0) else "",
        "min_requests": "must be at least 1" if plan.min_requests < 1 else "",
        "max_error_rate": "must be from 0 to 1" if not 0 <= plan.max_error_rate <= 1 else "",
        "max_latency_ratio": "must be 0 or at least 1"
        if not (ratio == 0 or (ratio >= 1 and math.isfinite(ratio)))
        else "",
        "key": f"there is no field '{plan.key}'"
        if declared and plan.key and plan.key not in declared.schema_.fields
        else "",
    }
    for name, message in wrong.items():
        if message:
            field = f"plan.{name}"
            raise EverloopError(
                Kind.INVALID, "INVALID_ARGUMENT", f"{field}: {message}", field=field
            )
