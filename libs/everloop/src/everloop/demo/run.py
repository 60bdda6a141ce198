"""One run of the demo: what it has started and learned so far, and how it waits."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from everloop.client import Everloop
from everloop.demo.evaluate import Comparison
from everloop.demo.events import EventLog
from everloop.demo.feed import Feed
from everloop.demo.flights import Flights
from everloop.demo.memory import MemoryWatch
from everloop.demo.screen import Screen
from everloop.demo.slices import Slice
from everloop.demo.tensors import Columns
from everloop.demo.traffic import Traffic
from everloop.errors import EverloopError
from everloop.stack import Endpoints
from everloop_contracts.pipeline import Pipeline

__all__ = ["Run", "StepFailed"]

Found = TypeVar("Found")
POLL_SECONDS = 0.2
# A part that the supervisor is starting again answers soon; the wait's own deadline still holds.
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})


class StepFailed(Exception):
    """A step cannot be completed.

    Attributes:
        part: Part of the stack whose log tells more; None where the step's own part is meant.
    """

    def __init__(self, message: str, part: str | None = None) -> None:
        super().__init__(message)
        self.part = part


@dataclass
class Run:
    """The state of one run; the steps fill it in their order.

    Attributes:
        home: Where this run keeps everything.
        pipelines: Folder with the user's pipeline files; the run uses a copy.
        slice: How much of the year.
        rate: Flights per second that the client asks about.
        screen: Where progress is shown.
        first: Position of the first flight that is predicted: the first of March.
        producer: The producer's process while it runs.
        broken: Broken records that the producer sent, by what was broken.
        produced: Messages that the producer sent.
        old: Version of the model that drift finds.
        new: Version that replaces it.
    """

    home: Path
    pipelines: Path
    slice: Slice
    rate: float
    screen: Screen
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    endpoints: Endpoints = field(init=False)
    client: Everloop = field(init=False)
    pipeline: Pipeline = field(init=False)
    flights: Flights = field(init=False)
    columns: Columns = field(init=False)
    events: EventLog = field(init=False)
    memory: MemoryWatch = field(init=False)
    traffic: Traffic = field(init=False)
    feed: Feed = field(init=False)
    comparison: Comparison = field(init=False)
    lineage: dict[str, Any] = field(init=False)
    causation_gaps: list[str] = field(default_factory=list)
    first: int = 0
    producer: subprocess.Popen[bytes] | None = None
    broken: dict[str, int] = field(default_factory=dict)
    produced: int = 0
    old: int = 0
    new: int = 0

    @property
    def name(self) -> str:
        """Name of the pipeline, which is the name of the model."""
        return self.pipeline.name

    def wait(
        self,
        what: str,
        seconds: float,
        ready: Callable[[], Found | None],
        tick: Callable[[], None] = lambda: None,
    ) -> Found:
        """Waits until `ready` returns something true and returns it.

        Args:
            what: What is waited for, for the error.
            seconds: How long.
            ready: Asked again and again; may raise StepFailed when there is nothing left to wait for.
            tick: Called between, to show progress.

        Raises:
            StepFailed: It did not happen in time, or something that runs beside failed.
        """
        deadline = time.monotonic() + seconds
        last = ""
        while True:
            self.check()
            try:
                if found := ready():
                    return found
                tick()
            except EverloopError as error:
                if error.reason not in _PASSING:
                    raise
                last = f" ({error.message})"
            if time.monotonic() > deadline:
                raise StepFailed(f"{what} did not happen within {seconds:.0f} s{last}")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Looks after what runs beside the steps.

        Raises:
            StepFailed: Something of it failed.
        """
        for name, part in (("events", "kafka"), ("traffic", "inference"), ("feed", "ingest")):
            failure = getattr(getattr(self, name, None), "failure", None)
            if failure is not None:
                raise StepFailed(f"{name} stopped: {failure!r}", part) from failure

    def close(self) -> None:
        """Stops everything that runs beside the steps; the stack is not among it."""
        for name in ("traffic", "feed", "events", "memory"):
            if (beside := getattr(self, name, None)) is not None:
                beside.stop()
        if self.producer is not None and self.producer.poll() is None:
            self.producer.kill()
            self.producer.wait()
        if (client := getattr(self, "client", None)) is not None:
            client.close()
