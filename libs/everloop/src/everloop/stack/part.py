"""What the stack knows about one of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

__all__ = ["STEPS_BACK", "NotReady", "Part", "Progress", "with_needs"]

STEPS_BACK = 10
"""Niceness of what can wait on a machine that also answers callers, who cannot."""

Progress = Callable[[str], None]
"""Takes one line for the person who waits; raises where the work is no longer wanted."""


class NotReady(Exception):
    """A part does not answer as a healthy one does; the text says what it did instead."""


def _nothing(progress: Progress) -> None:
    pass


@dataclass(frozen=True)
class Part:
    """One supervised process and its descendants.

    Attributes:
        name: Its name in `status`, in its log's name and in `EVERLOOP_PART`.
        command: Argument vector; nothing is expanded.
        environment: What it gets besides the stack's own environment.
        endpoint: Where a person or a client finds it.
        probe: Returns where the part is healthy, raises `NotReady` where it is not; takes at most a few seconds.
        needs: Parts that must be healthy before this one starts.
        prepare: Runs before the start, off the main thread: fetches, formats, writes configuration.
        deadline_seconds: How long it may take from the start until it is healthy.
        stop_seconds: How long it may take to stop before it is killed.
        niceness: How far it steps back where others want the processor, as nice(1) counts.
    """

    name: str
    command: tuple[str, ...]
    endpoint: str
    probe: Callable[[], None]
    environment: Mapping[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    prepare: Callable[[Progress], None] = _nothing
    deadline_seconds: float = 60
    stop_seconds: int = 10
    niceness: int = 0


def with_needs(parts: Iterable[Part], wanted: Iterable[str]) -> list[Part]:
    """Return the wanted parts and all they need, each after its needs.

    Needs that are not among `parts` are taken as met elsewhere.

    Raises:
        KeyError: A wanted part is unknown.
    """
    known = {part.name: part for part in parts}
    ordered: dict[str, Part] = {}

    def visit(part: Part) -> None:
        if part.name in ordered:
            return
        for need in part.needs:
            if need in known:
                visit(known[need])
        ordered[part.name] = part

    for name in wanted:
        visit(known[name])
    return list(ordered.values())
