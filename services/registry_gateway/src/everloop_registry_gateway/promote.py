"""Promotion and rollback: from a decision in the database, over MLflow's alias, to the event.

A move has three steps, and a crash between any two is made good by repeating the next one:

1. one transaction decides it: the pending transition and the model's new etag;
2. the alias in MLflow is set, which is what a stock MLflow client sees;
3. one transaction finishes it: stages, audit entries, `ModelPromoted` in the outbox, the answer to the request, and
   the end of the model's rollout if one runs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NoReturn

from everloop_contracts.stubs.everloop.registry.v1 import events_pb2
from everloop_registry_gateway import trial
from everloop_registry_gateway.adapters.rollouts import RolloutStore
from everloop_registry_gateway.adapters.store import Store
from everloop_registry_gateway.adapters.trail import Trail
from everloop_registry_gateway.artifacts import Artifacts
from everloop_registry_gateway.convert import version_message
from everloop_registry_gateway.domain import (
    APPROVAL,
    GATEWAY,
    ModelVersion,
    Move,
    Request,
    RolloutState,
    Stage,
    Transition,
)
from everloop_registry_gateway.metrics import ALIAS_CHANGES, PROMOTIONS
from everloop_registry_gateway.ports import ModelRegistry
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import new_event

__all__ = ["Promoter", "check_gates", "check_unchanged", "find"]

log = logging.getLogger(__name__)

DONE = {Move.PROMOTION: "promoted", Move.ROLLBACK: "rolled_back"}


def find(store: Store, model: str, version: int) -> ModelVersion:
    """One version; number 0 means the one in Production.

    Raises:
        EverloopError: kind not_found, reason MODEL_NOT_FOUND, VERSION_NOT_FOUND or NOTHING_IN_PRODUCTION.
    """
    _check_model(store, model)
    if version:
        found = store.version(model, version)
        if found is None:
            raise EverloopError(
                Kind.NOT_FOUND,
                "VERSION_NOT_FOUND",
                f"{model} has no version {version}",
                model=model,
                version=str(version),
            )
        return found
    production = store.production(model)
    if not production:
        raise EverloopError(
            Kind.NOT_FOUND,
            "NOTHING_IN_PRODUCTION",
            f"{model} has no version in Production",
            model=model,
        )
    return production[0]


def _check_model(store: Store, model: str) -> None:
    if not store.etag(model):
        raise EverloopError(
            Kind.NOT_FOUND, "MODEL_NOT_FOUND", f"there is no model {model!r}", model=model
        )


def check_gates(version: ModelVersion) -> None:
    """Does nothing for a version that passed its gates.

    Raises:
        EverloopError: kind precondition, reason GATES_NOT_PASSED.
    """
    if version.stage in (Stage.NONE, Stage.REJECTED):
        raise EverloopError(
            Kind.PRECONDITION,
            "GATES_NOT_PASSED",
            f"version {version.version} of {version.model} did not pass its gates: {version.refusals}",
            model=version.model,
            version=str(version.version),
        )


def check_unchanged(store: Store, model: str, etag: str) -> None:
    """Does nothing if a model is as its caller has seen it and nothing is under way.

    Raises:
        EverloopError: kind conflict, reason ETAG_MISMATCH or TRANSITION_PENDING.
    """
    if etag and etag != store.etag(model):
        raise EverloopError(
            Kind.CONFLICT,
            "ETAG_MISMATCH",
            f"{model} has changed since etag {etag}: read it again and decide anew",
            model=model,
            etag=store.etag(model),
        )
    if store.pending(model):
        raise EverloopError(
            Kind.CONFLICT,
            "TRANSITION_PENDING",
            f"another transition of {model} is under way",
            model=model,
        )


class Promoter:
    """Moves versions into Production, one move per model at a time."""

    def __init__(
        self,
        database: Database,
        registry: ModelRegistry,
        artifacts: Artifacts,
        turn_seconds: float = 10.0,
    ) -> None:
        """Takes the gateway's database, the registry, its files, and how long a call waits for its turn at a model."""
        self._database = database
        self._registry = registry
        self._artifacts = artifacts
        self._turn_seconds = turn_seconds
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    @property
    def registry_away(self) -> bool:
        """Whether MLflow did not answer when it was last asked, which is now and then without any move."""
        return self._registry.away

    @contextmanager
    def turn(self, model: str) -> Iterator[None]:
        """Holds a model: whatever sets its aliases does so under this lock, or an older move could have the last word.

        Raises:
            EverloopError: kind unavailable, reason MODEL_BUSY: somebody else holds it for too long.
        """
        with self._guard:
            lock = self._locks.setdefault(model, threading.Lock())
        if not lock.acquire(timeout=self._turn_seconds):
            raise EverloopError(
                Kind.UNAVAILABLE,
                "MODEL_BUSY",
                f"another transition of {model} is under way: try again",
                model=model,
            )
        try:
            yield
        finally:
            lock.release()

    def move(self, request: Request) -> ModelVersion:
        """Carries out a promotion or a rollback and returns the version, now in Production.

        Raises:
            EverloopError: kind not_found, conflict (the etag is not the current one), precondition (the version may
                not serve, or there is none to roll back to), invalid (the request id belongs to another request),
                or unavailable (MLflow does not answer; repeating the request is safe).
        """
        # Before its turn at a lock: locks of models that do not exist would only pile up.
        with self._database.read() as connection:
            _check_model(Store(connection), request.model)
        with self.turn(request.model):
            if answer := self._first_answer(request):
                return answer
            self.settle(request.model)
            if answer := self._first_answer(request):
                return answer
            with self._database.read() as connection:
                target = _target(Store(connection), request)
            self.check(target)
            self._decide(request)
            self.settle(request.model)
            if answer := self._first_answer(request):
                return answer
            with self._database.read() as connection:
                return find(Store(connection), target.model, target.version)

    def check(self, version: ModelVersion) -> None:
        """Does nothing but raise what stands against a promotion in MLflow.

        Raises:
            EverloopError: kind not_found if the version or its files were deleted there, precondition, reason
                ARTIFACT_CHANGED, if the files are not those that were judged, unavailable if MLflow does not answer.
        """
        self._registry.check_version(version.model, version.version)
        self._artifacts.check(version)

    def settle(self, model: str, *, repair: bool = False) -> None:
        """Finishes what is decided and tells MLflow what it does not know yet; call it in the model's turn.

        Args:
            model: name of a model; nothing happens if there is none.
            repair: also compare MLflow's aliases where everything seems to be done.

        Raises:
            EverloopError: kind unavailable if MLflow does not answer; kind precondition, reason VERSION_GONE, if the
                version was deleted in MLflow: the move is abandoned then.
        """
        with self._database.read() as connection:
            store = Store(connection)
            pending = store.pending(model)
            untold = store.unmirrored(model)
            wanted = _aliases(store, model, pending)
        if not (pending or untold or repair):
            return
        self._set_aliases(model, wanted, pending)
        if pending:
            self._finish(pending)
        self._tell_stages(model)

    def _first_answer(self, request: Request) -> ModelVersion | None:
        if not request.request_id:
            return None
        with self._database.read() as connection:
            return Store(connection).recall(request)

    def _decide(self, request: Request) -> None:
        with self._database.unit_of_work() as work:
            store = Store(work.connection)
            store.lock(request.model)
            target = _target(store, request)
            if target.stage is Stage.PRODUCTION:
                if request.request_id:
                    store.remember(request.request_id, request.move, request.version, target)
                return
            store.advance(request.model)
            store.begin(
                Transition(
                    move=request.move,
                    model=request.model,
                    version=target.version,
                    requested_version=request.version,
                    actor=request.actor,
                    reason=request.reason,
                    cause_id=request.request_id,
                    request_id=request.request_id,
                )
            )

    def _set_aliases(self, model: str, wanted: dict[str, int], pending: Transition | None) -> None:
        there = self._registry.aliases(model)
        for alias, version in wanted.items():
            if there.get(alias, 0) == version:
                continue
            try:
                if version:
                    self._registry.set_alias(model, alias, version)
                else:
                    self._registry.delete_alias(model, alias)
                ALIAS_CHANGES.labels(model, alias).inc()
            except EverloopError as error:
                if error.kind is not Kind.NOT_FOUND:
                    raise
                if pending and version == pending.version:
                    self._abandon(pending, error)
                # Somebody deleted it in MLflow: other moves of the model must go on.
                log.error("alias %s of %s: %s", alias, model, error)

    def _finish(self, pending: Transition) -> None:
        now = datetime.now(UTC)
        with self._database.unit_of_work() as work:
            store, trail = Store(work.connection), Trail(work.connection)
            store.lock(pending.model)
            if not store.end(pending):
                return  # another process was quicker
            model, version = pending.model, pending.version
            before = next(iter(store.production(model)), None)
            if pending.move is Move.ROLLBACK:
                store.pop_serving(model)
            else:
                store.push_serving(model, version)
            self._end_rollout(work, pending)
            store.set_stage(model, version, Stage.PRODUCTION, now)
            # What served, and what waited behind this version, will not serve by itself any more.
            put_away = [before] if before else []
            put_away += [old for old in store.staged(model) if _overtaken(old.version, pending)]
            for old in put_away:
                store.set_stage(model, old.version, Stage.ARCHIVED)
                trail.note(
                    model,
                    old.version,
                    "archived",
                    actor=pending.actor,
                    reason=f"version {version} was {DONE[pending.move].replace('_', ' ')}",
                    cause_id=pending.cause_id,
                )
            served = find(store, model, version)
            trail.note(
                model,
                version,
                DONE[pending.move],
                actor=pending.actor,
                reason=pending.reason,
                cause_id=pending.cause_id,
                evidence=served.gates,
            )
            store.advance(model)
            if pending.request_id:
                answer = find(store, model, version)
                store.remember(pending.request_id, pending.move, pending.requested_version, answer)
            promoted = events_pb2.ModelPromoted(
                version=version_message(find(store, model, version)),
                previous_version=before.version if before else 0,
                rollback=pending.move is Move.ROLLBACK,
            )
            work.publish(new_event(GATEWAY, model, promoted, cause=pending.cause_id))
        PROMOTIONS.labels(model, pending.move.value).inc()
        log.info("version %d of %s was %s", version, model, DONE[pending.move])

    def _end_rollout(self, work: UnitOfWork, done: Transition) -> None:
        """Ends the model's rollout, if one runs: its candidate is in Production now, or another version is."""
        by = "" if done.actor == GATEWAY else f" by {done.actor}"
        for rollout in RolloutStore(work.connection).running(done.model):
            mine = rollout.candidate_version == done.version
            if mine and not by:
                why = done.reason
            else:
                why = f"version {done.version} was {DONE[done.move].replace('_', ' ')}{by}"
                why += f": {done.reason}" if done.reason else ""
            trial.end(
                work,
                rollout,
                RolloutState.PROMOTED if mine else RolloutState.ABORTED,
                "person" if by else "baked" if mine else "overtaken",
                why,
                actor=done.actor,
                cause_id=done.cause_id,
            )

    def _abandon(self, pending: Transition, why: EverloopError) -> NoReturn:
        with self._database.unit_of_work() as work:
            store = Store(work.connection)
            store.lock(pending.model)
            if store.end(pending):
                for rollout in RolloutStore(work.connection).running(pending.model):
                    if rollout.candidate_version == pending.version:
                        trial.end(
                            work,
                            rollout,
                            RolloutState.ABORTED,
                            "gone",
                            why.message,
                            actor=pending.actor,
                            cause_id=pending.cause_id,
                        )
                store.advance(pending.model)
                Trail(work.connection).note(
                    pending.model,
                    pending.version,
                    "abandoned",
                    actor=pending.actor,
                    reason=why.message,
                    cause_id=pending.cause_id,
                )
        raise EverloopError(
            Kind.PRECONDITION, "VERSION_GONE", why.message, model=pending.model
        ) from why

    def _tell_stages(self, model: str) -> None:
        with self._database.read() as connection:
            untold = Store(connection).unmirrored(model)
        for version, known in untold:
            try:
                self._registry.set_tags(model, version.version, _tags(version, known))
            except EverloopError as error:
                log.warning("stage of version %d of %s: %s", version.version, model, error)
                if error.kind is not Kind.NOT_FOUND:
                    return  # nothing hangs on it: the reconciler tells it later
            with self._database.unit_of_work() as work:
                Store(work.connection).mirrored(version)


def _target(store: Store, request: Request) -> ModelVersion:
    """The version that a request puts into Production; raises what stands against it."""
    model = request.model
    _check_model(store, model)
    check_unchanged(store, model, request.etag)
    if request.move is Move.ROLLBACK:
        before = store.served_before(model)
        if not before:
            raise EverloopError(
                Kind.PRECONDITION,
                "NOTHING_TO_ROLL_BACK_TO",
                f"{model} has no version that served before the present one",
                model=model,
            )
        return find(store, model, before)
    named = find(store, model, request.version)
    check_gates(named)
    return named


def _aliases(store: Store, model: str, pending: Transition | None) -> dict[str, int]:
    """Alias to version, 0 for none, as it should be once `pending` is done."""
    production = next((version.version for version in store.production(model)), 0)
    waiting = [version.version for version in store.staged(model)]
    if pending:
        production = pending.version
        waiting = [version for version in waiting if not _overtaken(version, pending)]
        waiting = [version for version in waiting if version != pending.version]
    return {"production": production, "staging": waiting[0] if waiting else 0}


def _overtaken(staged: int, pending: Transition) -> bool:
    """True for a version in Staging that a newer one leaves behind on its way to Production."""
    return pending.move is Move.PROMOTION and staged < pending.version


def _tags(version: ModelVersion, known: bool) -> dict[str, str]:
    tags = {"everloop.stage": version.stage.value}
    for number, gate in enumerate(version.gates, start=1):
        # A trial and a person speak later than the gates.
        if not known or gate.gate in (trial.GATE, APPROVAL):
            verdict = "passed" if gate.passed else "refused"
            tags[f"everloop.gate.{number}.{gate.gate}"] = f"{verdict}: {gate.message}"
    return tags
