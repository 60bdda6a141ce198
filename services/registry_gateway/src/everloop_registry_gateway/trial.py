"""The steps of a rollout, each inside a transaction that its caller opened: begin, decide, end.

What ends a rollout by moving Production ends it in the transaction that finishes the move (`promote.py`), so that
nobody sees a candidate on trial beside anything but its baseline.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime

from everloop_contracts import pipeline
from everloop_contracts.stubs.everloop.registry.v1 import events_pb2
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.convert import rollout_message
from everloop_registry_gateway.domain import (
    GATEWAY,
    ArmTotals,
    GateResult,
    ModelVersion,
    Move,
    Rollout,
    RolloutPlan,
    RolloutState,
    Stage,
    Strategy,
    Transition,
)
from everloop_registry_gateway.judge import evidence
from everloop_registry_gateway.metrics import ROLLOUT_DECISIONS
from everloop_runtime.database import UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event

__all__ = ["GATE", "abort", "begin", "declared", "end", "promote", "send_on"]

log = logging.getLogger(__name__)

GATE = "rollout"
"""Name of the verdict that a trial leaves with its candidate."""


def declared(spec: pipeline.Rollout) -> RolloutPlan:
    """The plan that a pipeline declares."""
    return RolloutPlan(
        strategy=Strategy(spec.strategy),
        percent=spec.percent,
        key=spec.key,
        bake=spec.bake,
        min_requests=spec.min_requests,
        max_error_rate=spec.abort.error_rate,
        max_latency_ratio=spec.abort.latency_ratio or 0.0,
        abort_on_performance=spec.abort.performance,
    )


def send_on(
    work: UnitOfWork,
    version: ModelVersion,
    spec: pipeline.Rollout | None,
    *,
    actor: str,
    reason: str,
    cause_id: str,
    now: datetime,
) -> None:
    """Puts a version on trial where its pipeline says so and another one serves; decides to promote it otherwise.

    The caller changes the etag.
    """
    serving = Store(work.connection).production(version.model)
    if spec and serving:
        begin(
            work,
            version.model,
            version.version,
            serving[0].version,
            declared(spec),
            actor=actor,
            reason=reason,
            cause_id=cause_id,
            now=now,
        )
        return
    Store(work.connection).begin(
        Transition(
            move=Move.PROMOTION,
            model=version.model,
            version=version.version,
            requested_version=version.version,
            actor=actor,
            reason=reason,
            cause_id=cause_id,
        )
    )


def begin(
    work: UnitOfWork,
    model: str,
    candidate: int,
    baseline: int,
    plan: RolloutPlan,
    *,
    actor: str,
    reason: str,
    cause_id: str,
    now: datetime,
) -> Rollout:
    """Puts a candidate on trial; the one that is on trial already is superseded. The caller changes the etag."""
    rollouts = RolloutStore(work.connection)
    for running in rollouts.running(model):
        why = f"superseded by version {candidate}"
        end(
            work,
            running,
            RolloutState.ABORTED,
            "superseded",
            why,
            actor=actor,
            cause_id=cause_id,
            now=now,
        )
    rollout = Rollout(
        id=str(uuid.uuid4()),
        model=model,
        candidate_version=candidate,
        baseline_version=baseline,
        plan=plan,
        state=RolloutState.RUNNING,
        reason="",
        candidate=ArmTotals(),
        baseline=ArmTotals(),
        start_time=now,
        end_time=None,
    )
    rollouts.add(rollout)
    how = f"{plan.strategy} of {plan.percent:g} % beside version {baseline}"
    Trail(work.connection).note(
        model,
        candidate,
        "rollout_started",
        actor=actor,
        reason=f"{how}: {reason}" if reason else how,
        cause_id=cause_id,
    )
    started = events_pb2.RolloutStarted(rollout=rollout_message(rollout))
    # One id for both: the rollout that causes a promotion is an event that others have seen.
    work.publish(new_event(GATEWAY, model, started, cause=cause_id, id=rollout.id))
    log.info("version %d of %s is on trial: %s", candidate, model, how)
    return rollout


def promote(work: UnitOfWork, rollout: Rollout, *, actor: str, reason: str, cause_id: str) -> None:
    """Decides that the candidate is promoted; the promoter settles it, and ends the rollout then.

    Raises:
        EverloopError: kind conflict, reason ROLLOUT_ENDED: it does not run any more.
    """
    if not RolloutStore(work.connection).hold(rollout.id):
        raise EverloopError(
            Kind.CONFLICT, "ROLLOUT_ENDED", f"rollout {rollout.id} has ended meanwhile"
        )
    store = Store(work.connection)
    store.advance(rollout.model)
    store.begin(
        Transition(
            move=Move.PROMOTION,
            model=rollout.model,
            version=rollout.candidate_version,
            requested_version=rollout.candidate_version,
            actor=actor,
            reason=reason,
            cause_id=cause_id,
        )
    )


def abort(
    work: UnitOfWork,
    rollout: Rollout,
    cause: str,
    reason: str,
    *,
    actor: str,
    cause_id: str,
    now: datetime,
) -> bool:
    """Takes the candidate back and returns True, unless a move is decided: that one says how the rollout ends."""
    store = Store(work.connection)
    if store.pending(rollout.model):
        return False
    ended = end(
        work,
        rollout,
        RolloutState.ABORTED,
        cause,
        reason,
        actor=actor,
        cause_id=cause_id,
        now=now,
    )
    if ended:
        store.advance(rollout.model)
    return ended


def end(
    work: UnitOfWork,
    rollout: Rollout,
    state: RolloutState,
    cause: str,
    reason: str,
    *,
    actor: str,
    cause_id: str,
    now: datetime | None = None,
) -> bool:
    """Ends a rollout and leaves its evidence with the candidate; False if it has ended already.

    An aborted candidate is rejected, so that nobody promotes it by accident. The caller changes the etag.

    Args:
        work: the open transaction.
        rollout: as it stands, with what its replicas have reported.
        state: how it ends.
        cause: what ended it, a word of a fixed few.
        reason: the same for a person, with the numbers.
        actor: who ended it.
        cause_id: event, request or rollout behind it.
        now: when; the present where not given.
    """
    store = Store(work.connection)
    end_time = now or datetime.now(UTC)
    ended = replace(rollout, state=state, reason=reason, end_time=end_time)
    if not RolloutStore(work.connection).end(ended):
        return False
    version = store.version(rollout.model, rollout.candidate_version)
    assert version is not None, "versions are never deleted"
    promoted = state is RolloutState.PROMOTED
    numbers = evidence(
        rollout.plan, rollout.candidate, rollout.baseline, end_time - rollout.start_time
    )
    verdict = GateResult(GATE, promoted, reason, numbers)
    store.add_gate(version, verdict)
    if not promoted:
        store.set_stage(rollout.model, rollout.candidate_version, Stage.REJECTED)
        Trail(work.connection).note(
            rollout.model,
            rollout.candidate_version,
            "rollout_aborted",
            actor=actor,
            reason=reason,
            cause_id=cause_id,
            evidence=[verdict],
        )
    message = events_pb2.RolloutEnded(rollout=rollout_message(ended))
    work.publish(new_event(GATEWAY, rollout.model, message, cause=cause_id))
    ROLLOUT_DECISIONS.labels(rollout.model, state.value, cause).inc()
    log.info(
        "the trial of version %d of %s was %s: %s",
        rollout.candidate_version,
        rollout.model,
        state,
        reason,
    )
    return True
