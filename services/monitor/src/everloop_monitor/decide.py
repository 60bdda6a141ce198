"""The retrain policy: pure, so that every decision can be made again from its evidence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from everloop_contracts.pipeline import Retrain
from everloop_monitor.domain import Chunk, Condition, Decision, Request, stable_id

__all__ = ["decide"]


def decide(
    rule: Retrain,
    chunk: Chunk,
    recent: Mapping[Condition, Sequence[Chunk]],
    *,
    production: int,
    last: Request | None,
    made: Collection[str],
    now: datetime,
) -> Decision:
    """Decides, after an evaluation of `chunk`, whether to ask for a new model.

    A condition holds when at least `rule.chunks` of the last `rule.of` consecutive chunks alert on it, counted
    back from the newest chunk with a verdict; a chunk without a verdict in between does not count as an alert.

    Args:
        rule: what the pipeline declares.
        chunk: the chunk that was evaluated.
        recent: for each condition of the rule, chunks of this version that have a verdict on it.
        production: version in Production now; 0 if none is known.
        last: the pipeline's last request.
        made: ids of requests that were made already.
        now: wall-clock time.

    Returns:
        `retrain` with the request's id, which depends only on pipeline, version, window and condition; or
        `wait` (not enough alerts, or the version is not in Production), `already_requested` (a request for
        this version is open, or this very one was made), `cooldown` (the last request is too young).

    >>> from everloop_monitor.domain import Report
    >>> from datetime import UTC
    >>> drifted = Chunk(1, "trips", 1, 0, 0, 100, "event", report=Report((), 0.5, True))
    >>> def ask(chunks, last=None):
    ...     rule = Retrain(when=("drift",), chunks=chunks, of=2)
    ...     now = datetime(2013, 5, 1, tzinfo=UTC)
    ...     return decide(rule, drifted, {"drift": [drifted]}, production=1, last=last, made=(), now=now)
    >>> ask(chunks=1).action
    'retrain'
    >>> ask(chunks=2).reason
    'drift: 1 of the last 2 chunks alert, 2 needed (chunk 0: 50% of the features drifted)'
    >>> earlier = Request("id", "trips", 1, "trips/1/0", "why", datetime(2013, 4, 30, 23, 30, tzinfo=UTC))
    >>> ask(chunks=1, last=earlier).action
    'already_requested'
    """
    if chunk.version != production:
        return Decision(
            "wait", f"version {chunk.version} is not in Production (version {production} is)"
        )
    held: list[Decision] = []
    notes: list[str] = []
    for condition in rule.when:
        window = _window(recent.get(condition, ()), rule.of)
        alerting = [item for item in window if item.verdict(condition)]
        text = _evidence(rule, condition, window, alerting)
        notes.append(text)
        if len(alerting) >= rule.chunks:
            between = alerting[0].index, alerting[-1].index
            request_id = stable_id(
                "RetrainRequested", chunk.pipeline, chunk.version, *between, condition
            )
            held.append(_unless_asked(rule, chunk, text, request_id, last, made, now))
    asking = [decision for decision in held if decision.action == "retrain"]
    return (asking or held or [Decision("wait", "; ".join(notes))])[0]


def _window(chunks: Sequence[Chunk], length: int) -> list[Chunk]:
    """Those of the chunks that are among the last `length` consecutive ones, oldest first.

    >>> [c.index for c in _window([Chunk(n, "trips", 1, n, 0, 1, "") for n in (7, 4, 5)], 3)]
    [5, 7]
    """
    ordered = sorted(chunks, key=lambda item: item.index)
    return [item for item in ordered if item.index > ordered[-1].index - length]


def _evidence(
    rule: Retrain, condition: Condition, window: Sequence[Chunk], alerting: Sequence[Chunk]
) -> str:
    """What the window shows, for a person."""
    text = f"{condition}: {len(alerting)} of the last {rule.of} chunks alert, {rule.chunks} needed"
    shown = alerting or window[-1:]
    if not shown:
        return text
    return f"{text} ({'; '.join(f'chunk {c.index}: {c.evidence(condition)}' for c in shown)})"


def _unless_asked(
    rule: Retrain,
    chunk: Chunk,
    text: str,
    request_id: str,
    last: Request | None,
    made: Collection[str],
    now: datetime,
) -> Decision:
    if request_id in made:
        return Decision(
            "already_requested", f"{text}; request {request_id} was made for this window"
        )
    if last is not None and now < last.made_at + rule.cooldown:
        until = (last.made_at + rule.cooldown).isoformat(timespec="seconds")
        if last.version == chunk.version:
            return Decision("already_requested", f"{text}; request {last.id} is open until {until}")
        return Decision("cooldown", f"{text}; the cooldown lasts until {until}")
    return Decision("retrain", text, request_id)
