"""Everything that the services tell each other, seen by a plain consumer: one line per event as it happens."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from kafka import KafkaConsumer
from rich.markup import escape

from everloop.cli.output import enum_name
from everloop_contracts.events import TOPICS, message_class

__all__ = ["BULK", "EventLog", "Seen", "describe", "read"]

BULK = frozenset({"PredictionsLogged", "ActualsRecorded"})
"""Events that carry data in bulk: counted, not told one by one."""


@dataclass(frozen=True)
class Seen:
    """An event on a topic.

    Attributes:
        id: Its CloudEvents id.
        type: Full name of the Protobuf message.
        source: Who sent it.
        pipeline: What it concerns.
        cause: Id of the event or request that caused it; empty if none.
        time: When it happened.
        data: The message; None for `BULK` events, whose bodies are not read.
    """

    id: str
    type: str
    source: str
    pipeline: str
    cause: str
    time: datetime
    data: Any

    @property
    def name(self) -> str:
        """The type without its package."""
        return self.type.rpartition(".")[2]


def read(value: bytes, headers: Sequence[tuple[str, bytes]]) -> Seen:
    """Reads a CloudEvent in Kafka's binary content mode.

    Raises:
        KeyError: A header is missing.
    """
    names = {key: bytes(item).decode() for key, item in headers}
    kind = names["ce_type"]
    bulk = kind.rpartition(".")[2] in BULK
    return Seen(
        id=names["ce_id"],
        type=kind,
        source=names["ce_source"],
        pipeline=names.get("ce_subject", ""),
        cause=names.get("causationid", ""),
        time=datetime.fromisoformat(names["ce_time"]),
        data=None if bulk else message_class(kind).FromString(value),
    )


def describe(event: Seen) -> str:
    """Says in a few words what happened."""
    data = event.data
    match event.name:
        case "DatasetVersionCreated":
            dataset = data.dataset
            return (
                f"dataset v{dataset.version}: {dataset.rows:,} rows, "
                f"{dataset.labelled_rows:,} with a label, tag {dataset.git_tag}"
            )
        case "ModelTrained":
            metrics = _metrics(data.metrics)
            against = (
                f"; v{data.baseline_version} on the same rows: {_metrics(data.baseline_metrics)}"
                if data.baseline_version
                else ""
            )
            return f"{data.family} in {data.training_seconds:.0f} s: {metrics}{against}"
        case "TrainingFailed":
            return f"training {data.training_id} failed: {data.error}"
        case "ModelRegistered":
            gates = ", ".join(
                f"{gate.gate} {'ok' if gate.passed else 'NO'}" for gate in data.version.gates
            )
            stage = enum_name(data.version.DESCRIPTOR.fields_by_name["stage"], data.version.stage)
            return f"v{data.version.version} is {stage}; gates: {gates or 'none'}"
        case "ModelPromoted":
            before = f", replaces v{data.previous_version}" if data.previous_version else ""
            return f"v{data.version.version} is in Production{before}"
        case "RolloutStarted":
            tried = data.rollout
            return f"v{tried.candidate_version} is on trial beside v{tried.baseline_version}"
        case "RolloutEnded":
            state = enum_name(data.rollout.DESCRIPTOR.fields_by_name["state"], data.rollout.state)
            return (
                f"the trial of v{data.rollout.candidate_version} is {state}: {data.rollout.reason}"
            )
        case "DriftDetected":
            chunk = data.chunk
            measured = (
                f", {chunk.realised_performance.measure} {chunk.realised_performance.value:.3f}"
                if chunk.HasField("realised_performance")
                else ""
            )
            return f"chunk {chunk.id} alerts{measured}"
        case "RetrainRequested":
            return f"a new model is asked for: {data.reason}"
    return ""


def _metrics(metrics: Any) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in sorted(metrics.items()))


class EventLog:
    """Reads the event topics from their beginning on a thread of its own."""

    def __init__(self, bootstrap: str, tell: Callable[[str], None]) -> None:
        """Takes the broker and what to do with each line."""
        self._bootstrap = bootstrap
        self._tell = tell
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._seen: list[Seen] = []
        self._ids: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        """Starts reading."""
        self._thread.start()

    def stop(self) -> None:
        """Stops reading."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def seen(self) -> list[Seen]:
        """Every event so far, in order of arrival, without the bulk ones."""
        with self._lock:
            return list(self._seen)

    def knows(self, event_id: str) -> bool:
        """Says whether an event with this id went by, bulk ones included."""
        with self._lock:
            return event_id in self._ids

    def find(self, name: str, accept: Callable[[Seen], bool] = lambda event: True) -> Seen | None:
        """Returns the first event of a type that is accepted."""
        return next((event for event in self.seen if event.name == name and accept(event)), None)

    def add(self, event: Seen) -> None:
        """Takes an event into the log and tells of it."""
        with self._lock:
            if event.id in self._ids:
                return  # topics deliver at least once
            self._ids.add(event.id)
            self.counts[event.name] += 1
            if event.data is None:
                return
            self._seen.append(event)
        local = event.time.astimezone().strftime("%H:%M:%S")
        cause = f" ← {event.cause[:8]}" if event.cause else ""
        self._tell(
            f"  [dim]{local}[/] [green]{event.name}[/] {escape(describe(event))}"
            f"  [dim]{event.id[:8]}{cause}[/]"
        )

    def _run(self) -> None:
        try:
            consumer = KafkaConsumer(
                *sorted(set(TOPICS.values())),
                bootstrap_servers=self._bootstrap.split(","),
                group_id=None,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                metadata_max_age_ms=2000,
            )
            try:
                while not self._stop.is_set():
                    for records in consumer.poll(timeout_ms=300).values():
                        for record in records:
                            self.add(read(record.value, record.headers))
            finally:
                consumer.close()
        except Exception as error:
            self.failure = error
