"""Commits what an evaluation found: chunk, alert, decision and request together, or nothing of it."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from everloop_contracts.events import MONITOR
from everloop_contracts.pipeline import Monitoring
from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2
from everloop_monitor import messages, metrics
from everloop_monitor.adapters.store import chunks, decisions, versions
from everloop_monitor.decide import decide, judge_request
from everloop_monitor.domain import Chunk, Decision, Request, decision_id, drift_event_id
from everloop_runtime.database import Database, UnitOfWork
from everloop_runtime.events import new_event

__all__ = ["conclude"]

_HISTORY = 500
"""Requests that a decision looks back on: more than the budget of a day."""

log = logging.getLogger(__name__)


def conclude(
    database: Database, rule: Monitoring, chunk: Chunk, *, before: str, after: str, now: datetime
) -> bool:
    """Stores an evaluated chunk, announces it if it alerts, and decides whether to ask for a retrain.

    A chunk is announced once, and once more where labels then show a bad performance that nothing had told of: whoever
    judges a version by its performance must hear of it.

    Returns:
        False if the chunk is no longer in state `before`: then this was concluded already, and nothing happens.
    """
    event_id = _announcement(chunk)
    chunk = replace(chunk, announced=chunk.announced or bool(event_id))
    with database.unit_of_work() as work:
        if not chunks.save_evaluation(work.connection, chunk, before=before, after=after):
            return False
        if event_id:
            drifted = events_pb2.DriftDetected(chunk=messages.chunk(chunk))
            work.publish(
                new_event(MONITOR, chunk.pipeline, drifted, cause=chunk.cause, id=event_id)
            )
        made = [
            *_judge_requests(work, rule, chunk, occasion=after, now=now),
            _decide(work, rule, chunk, occasion=after, now=now),
        ]
    for decision in made:
        metrics.DECISIONS.labels(chunk.pipeline, decision.action).inc()
        log.info("chunk %s: %s: %s", chunk.id, decision.action, decision.reason)
    return True


def _announcement(chunk: Chunk) -> str:
    """Id of the event that is due; empty if none is."""
    if chunk.announced:
        surprise = chunk.verdict("realised_performance") and not chunk.verdict(
            "estimated_performance"
        )
        return drift_event_id(chunk.id, "realised_performance") if surprise else ""
    return drift_event_id(chunk.id) if chunk.alert else ""


def _judge_requests(
    work: UnitOfWork, rule: Monitoring, chunk: Chunk, *, occasion: str, now: datetime
) -> list[Decision]:
    """Judges, and records, whether the chunk's version helps those who asked for it."""
    connection = work.connection
    # Read first: it locks the pipeline for this decision.
    if versions.production(connection, chunk.pipeline) != chunk.version:
        return []
    judged = []
    for request in decisions.newest_requests(connection, chunk.pipeline, _HISTORY):
        if request.answer != chunk.version or request.helped is not None:
            continue
        seen = chunks.first(connection, chunk, request.condition, rule.retrain.chunks)  # type: ignore[arg-type]
        decision = judge_request(rule.retrain, request, seen)
        if decision is not None:
            decisions.set_helped(connection, request.id, decision.action == "helped")
            one = decision_id(chunk.id, f"{occasion}/{request.id}")
            decisions.add(connection, chunk, one, decision, now)
            judged.append(decision)
    return judged


def _decide(
    work: UnitOfWork, rule: Monitoring, chunk: Chunk, *, occasion: str, now: datetime
) -> Decision:
    """Asks the policy, and records its decision and the request that may follow."""
    connection = work.connection
    # Read first: it locks the pipeline for this decision.
    production = versions.production(connection, chunk.pipeline)
    decision = decide(
        rule,
        chunk,
        {
            condition: chunks.recent(connection, chunk, condition, rule.retrain.of)
            for condition in rule.retrain.when
        },
        production=production,
        history=decisions.newest_requests(connection, chunk.pipeline, _HISTORY),
        made=decisions.request_ids(connection, chunk.pipeline, chunk.version),
        now=now,
    )
    decisions.add(connection, chunk, decision_id(chunk.id, occasion), decision, now)
    if decision.action == "retrain":
        request = Request(
            decision.request_id,
            chunk.pipeline,
            chunk.version,
            chunk.id,
            decision.reason,
            now,
            decision.condition,
            decision.badness,
        )
        decisions.add_request(connection, request)
        work.publish(
            new_event(
                MONITOR,
                chunk.pipeline,
                messages.retrain_requested(request),
                cause=drift_event_id(chunk.id) if chunk.announced else chunk.cause,
                id=request.id,
            )
        )
    return decision
