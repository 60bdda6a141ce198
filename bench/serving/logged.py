"""What a consumer of the prediction log reads, row by row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from kafka import KafkaConsumer, TopicPartition

from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged
from everloop_runtime.events import PREDICTIONS, decode

__all__ = ["Logged", "Row", "read"]


@dataclass(frozen=True, slots=True)
class Row:
    """A logged prediction.

    Attributes:
        version: that said it.
        began: when the request was complete, in seconds since 1970.
        ended: when it was answered.
    """

    version: int
    began: float
    ended: float


@dataclass
class Logged:
    """Everything in the topic.

    Attributes:
        rows: by prediction id.
        repeated_events: events that came again under their id, which at-least-once allows.
        repeated_rows: predictions that came in two different events, which nothing allows.
        out_of_order: rows that came after a later one of their replica.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    repeated_events: int = 0
    repeated_rows: int = 0
    out_of_order: int = 0


def read(bootstrap: str) -> Logged:
    """Reads from the first record to the last that is there now.

    All rows of a model are in one partition, so that their order is the broker's.
    """
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        return _read(consumer)
    finally:
        consumer.close()


def _read(consumer: KafkaConsumer) -> Logged:
    found = Logged()
    events: Counter[str] = Counter()
    last: dict[str, int] = {}
    partitions = [
        TopicPartition(PREDICTIONS, number) for number in consumer.partitions_for_topic(PREDICTIONS)
    ]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        for batch in consumer.poll(timeout_ms=500).values():
            for record in batch:
                event = decode(record.value, record.headers)
                assert isinstance(event.data, PredictionsLogged)
                events[event.id] += 1
                if events[event.id] > 1:
                    found.repeated_events += 1
                    continue
                _add(found, last, event.data)
    return found


def _add(found: Logged, last: dict[str, int], data: PredictionsLogged) -> None:
    for name, time, latency in zip(
        data.prediction_ids, data.time_micros, data.latency_micros, strict=True
    ):
        epoch, _, number = name.rpartition("-")
        position = int(number, 16)
        found.out_of_order += position <= last.get(epoch, -1)
        last[epoch] = max(position, last.get(epoch, -1))
        found.repeated_rows += name in found.rows
        found.rows[name] = Row(data.model_version, (time - latency) / 1e6, time / 1e6)
