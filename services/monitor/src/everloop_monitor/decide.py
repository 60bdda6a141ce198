"""The retrain policy: pure, so that every decision can be made again from its evidence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import takewhile

from everloop_contracts.pipeline import Monitoring, Retrain
from everloop_monitor.domain import Chunk, Condition, Decision, Evidence, Request, stable_id

__all__ = ["decide", "judge_request"]

_DAY = timedelta(hours=24)
_MOST_DOUBLINGS = 5


def decide(
    rule: Monitoring,
    chunk: Chunk,
    recent: Mapping[Condition, Sequence[Chunk]],
    *,
    production: int,
    history: Sequence[Request],
    made: Collection[str],
    now: datetime,
) -> Decision:
    """Decides, after an evaluation of `chunk`, whether to ask for a new model.

    A condition holds when at least `chunks` of the last `of` consecutive chunks alert on it, counted back from the
    newest chunk with a verdict; a chunk without a verdict in between does not count as an alert. A single chunk is
    enough from the severity `urgent` on. Where several conditions hold, the first that may ask does.

    Args:
        rule: what the pipeline declares.
        chunk: the chunk that was evaluated.
        recent: for each condition of the rule, chunks of this version that have a verdict on it.
        production: version in Production now; 0 if none is known.
        history: the pipeline's requests, newest first: all that are young enough to matter.
        made: ids of requests that were made already for this version.
        now: wall-clock time.

    Returns:
        `retrain` with the request's id, which depends only on pipeline, version, window and condition; or
        `wait` (no condition holds, or it cost too little, or the version is not in Production), `already_requested` (a
        request is open, or this very one was made), `cooldown` (the last request is too young), `over_budget` (too many
        in 24 hours), `quiet_hours`.

    >>> from everloop_monitor.domain import Report
    >>> from datetime import UTC
    >>> drifted = Chunk(1, "trips", 1, 0, 0, 100, "event", report=Report((), 0.5, True))
    >>> def ask(chunks, *history):
    ...     rule = Monitoring(retrain=Retrain(when=("drift",), chunks=chunks, of=2))
    ...     now = datetime(2013, 5, 1, tzinfo=UTC)
    ...     recent = {"drift": [drifted]}
    ...     return decide(rule, drifted, recent, production=1, history=history, made=(), now=now)
    >>> ask(1).action
    'retrain'
    >>> ask(2).reason
    'drift: 1 of the last 2 chunks alert, 2 needed (chunk 0: 50% of the features drifted)'
    >>> ask(1, Request("id", "trips", 1, "trips/1/0", "why", datetime(2013, 4, 30, 23, 30, tzinfo=UTC))).action
    'already_requested'
    """
    if chunk.version != production:
        return Decision(
            "wait", f"version {chunk.version} is not in Production (version {production} is)"
        )
    considered = [
        _consider(rule, chunk, condition, recent.get(condition, ()), history, made, now)
        for condition in rule.retrain.when
    ]
    held = [decision for decision in considered if decision.action != "wait"]
    asking = [decision for decision in held if decision.action == "retrain"]
    if held:
        return (asking or held)[0]
    return Decision(
        "wait",
        "; ".join([*(decision.reason for decision in considered), *_only_alerts(rule, chunk)]),
        evidence=tuple(item for decision in considered for item in decision.evidence),
    )


def judge_request(rule: Retrain, request: Request, chunks: Sequence[Chunk]) -> Decision | None:
    """Judges whether the version that was promoted for a request does better than the one it replaced.

    Args:
        rule: what the pipeline declares: as many chunks as it takes to ask are needed.
        request: a request whose answer has not been judged.
        chunks: the first chunks of that version with a verdict on the request's condition, in order.

    Returns:
        `helped` or `did_not_help`; None where there are too few chunks yet.

    >>> from everloop_monitor.domain import Report
    >>> from datetime import UTC
    >>> asked = Request("id", "trips", 1, "trips/1/7", "why", datetime(2013, 5, 1, tzinfo=UTC), "drift", 1.8, answer=2)
    >>> better = Chunk(1, "trips", 2, 0, 0, 100, "event", report=Report((), 0.1, False, severities={"drift": 0.4}))
    >>> judge_request(Retrain(when=("drift",), chunks=1), asked, [better]).reason
    'version 2 does better than version 1 did on drift: 0.4000 now, 1.8000 in the chunks that asked for it'
    """
    condition: Condition = request.condition  # type: ignore[assignment]
    first = list(chunks)[: rule.chunks]
    if len(first) < rule.chunks:
        return None
    now = sum(chunk.badness(condition) for chunk in first) / len(first)
    helped = now < request.badness
    return Decision(
        "helped" if helped else "did_not_help",
        f"version {request.answer} does {'better' if helped else 'no better'} than version {request.version} did on"
        f" {condition}: {abs(now):.4f} now, {abs(request.badness):.4f} in the chunks that asked for it",
        request.id,
        condition,
        max(chunk.severity(condition) for chunk in first),
        now,
        _evidence(condition, first),
    )


def _consider(
    rule: Monitoring,
    chunk: Chunk,
    condition: Condition,
    recent: Sequence[Chunk],
    history: Sequence[Request],
    made: Collection[str],
    now: datetime,
) -> Decision:
    """What follows from one condition."""
    retrain = rule.retrain
    window = _window(recent, retrain.of)
    alerting = [item for item in window if item.verdict(condition)]
    worst = max((item.severity(condition) for item in alerting), default=0.0)
    urgent = retrain.urgent is not None and worst >= retrain.urgent
    needed = 1 if urgent else retrain.chunks
    text = _text(retrain, condition, window, alerting, needed)
    found = Decision(
        "wait",
        text,
        condition=condition,
        severity=worst,
        badness=sum(c.badness(condition) for c in alerting) / max(len(alerting), 1),
        evidence=_evidence(condition, window),
    )
    if len(alerting) < needed:
        return found
    if retrain.min_cost is not None:
        cost = sum(c.severity(condition) * rule.performance.max_loss * c.rows for c in alerting)
        text = f"{text}; they cost {cost:.6g} more than the reference sample's, {retrain.min_cost:.6g} needed"
        if cost < retrain.min_cost:
            return replace(found, reason=text)
    between = alerting[0].index, alerting[-1].index
    request_id = stable_id("RetrainRequested", chunk.pipeline, chunk.version, *between, condition)
    held_back = _held_back(retrain, chunk, request_id, history, made, urgent=urgent, now=now)
    if held_back is None:
        return replace(found, action="retrain", reason=text, request_id=request_id)
    return replace(found, action=held_back.action, reason=f"{text}; {held_back.reason}")


def _held_back(
    rule: Retrain,
    chunk: Chunk,
    request_id: str,
    history: Sequence[Request],
    made: Collection[str],
    *,
    urgent: bool,
    now: datetime,
) -> Decision | None:
    """Why a request is not made although its condition holds; None where it is."""
    if request_id in made:
        return Decision("already_requested", f"request {request_id} was made for this window")
    if history:
        last = history[0]
        open_until = last.made_at + rule.answer_within
        if last.outcome == "open" and last.version == chunk.version and now < open_until:
            until = open_until.isoformat(timespec="seconds")
            return Decision("already_requested", f"request {last.id} is open until {until}")
        vain = len(list(takewhile(lambda request: request.in_vain, history)))
        free = last.made_at + rule.cooldown * 2 ** min(vain, _MOST_DOUBLINGS)
        if now < free:
            why = f", for {vain} in a row did not help" if vain else ""
            until = free.isoformat(timespec="seconds")
            return Decision("cooldown", f"the cooldown lasts until {until}{why}")
    today = sum(now - request.made_at < _DAY for request in history)
    if today >= rule.per_day:
        return Decision("over_budget", f"{today} of {rule.per_day} requests were made in 24 hours")
    if rule.quiet_hours is not None and not urgent and rule.quiet_hours.hold(now):
        quiet = rule.quiet_hours
        return Decision("quiet_hours", f"quiet from {quiet.start} to {quiet.end} {quiet.timezone}")
    return None


def _window(chunks: Sequence[Chunk], length: int) -> list[Chunk]:
    """Those of the chunks that are among the last `length` consecutive ones, oldest first.

    >>> [c.index for c in _window([Chunk(n, "trips", 1, n, 0, 1, "") for n in (7, 4, 5)], 3)]
    [5, 7]
    """
    ordered = sorted(chunks, key=lambda item: item.index)
    return [item for item in ordered if item.index > ordered[-1].index - length]


def _text(
    rule: Retrain,
    condition: Condition,
    window: Sequence[Chunk],
    alerting: Sequence[Chunk],
    needed: int,
) -> str:
    """What the window shows, for a person."""
    urgent = " as it is urgent" if needed < rule.chunks else ""
    text = (
        f"{condition}: {len(alerting)} of the last {rule.of} chunks alert, {needed} needed{urgent}"
    )
    shown = alerting or window[-1:]
    if not shown:
        return text
    return f"{text} ({'; '.join(f'chunk {c.index}: {c.evidence(condition)}' for c in shown)})"


def _only_alerts(rule: Monitoring, chunk: Chunk) -> list[str]:
    """Conditions that the chunk alerts on and that ask for no new model."""
    others = [condition for condition in chunk.alerts if condition not in rule.retrain.when]
    return [f"{', '.join(others)} alerts, and asks for no new model here"] if others else []


def _evidence(condition: Condition, chunks: Sequence[Chunk]) -> tuple[Evidence, ...]:
    return tuple(
        Evidence(
            item.id,
            condition,
            item.evidence(condition),
            bool(item.verdict(condition)),
            item.severity(condition),
        )
        for item in chunks
    )
