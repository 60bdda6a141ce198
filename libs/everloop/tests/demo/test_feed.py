"""What the world sends while the client asks."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

from everloop.demo import feed as feed_module
from everloop.demo.feed import LABEL_DELAY_SECONDS, Feed

MODEL = "flight-delays"


class FakeKafkaProducer:
    """Takes what is sent."""

    def __init__(self, **options: Any) -> None: ...

    def send(self, topic: str, key: bytes, value: bytes) -> FakeKafkaProducer:
        self.sent.append((topic, key, value))
        return self

    def add_errback(self, errback: Any) -> None:
        if self.refuses:
            errback(TimeoutError("no broker"))

    def flush(self, timeout: float) -> None: ...
    def close(self, timeout: float) -> None: ...

    sent: ClassVar[list[tuple[str, bytes, bytes]]]
    refuses = False


@pytest.fixture
def kafka(monkeypatch) -> type[FakeKafkaProducer]:
    class Producer(FakeKafkaProducer):
        sent: ClassVar[list[tuple[str, bytes, bytes]]] = []

    monkeypatch.setattr(feed_module, "KafkaProducer", Producer)
    monkeypatch.setattr(feed_module, "TICK_SECONDS", 0.01)
    return Producer


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_flights_go_when_they_depart_and_labels_a_day_later(two_days, everloop, fake, kafka):
    first = int(np.searchsorted(two_days.month, 2, side="right"))
    position = first
    feed = Feed(two_days, first, lambda: position, everloop, MODEL, "records", "broker")
    feed.start()
    # To the last flight of the first of March: nobody's label is due.
    clock = two_days.departs[first] + LABEL_DELAY_SECONDS
    position = int(np.searchsorted(two_days.departs, clock - 3600, side="right"))
    until(lambda: feed.records_sent == position - first)
    assert feed.labels_sent == 0 and not fake.records
    # To the end of the second of March: the first day's labels are due, the second day's are not.
    position = int(np.searchsorted(two_days.month, 3, side="right"))
    due = np.searchsorted(
        two_days.departs, two_days.departs[position - 1] - LABEL_DELAY_SECONDS, side="right"
    )
    expected = int((~np.isnan(two_days.late[first:due])).sum())
    until(lambda: feed.labels_sent == expected)
    feed.end_of_year()
    until(lambda: feed.finished)
    assert feed.failure is None

    sent = [json.loads(value) for _, _, value in kafka.sent]
    assert [r["flight_id"] for r in sent] == two_days.frame["flight_id"][first:position].tolist()
    assert not [record for record in sent if "late" in record]
    assert {topic for topic, _, _ in kafka.sent} == {"records"}
    labels = {record["flight_id"]: record for record in map(json.loads, fake.records)}
    known = ~np.isnan(two_days.late[first:position])
    assert list(labels) == two_days.frame["flight_id"][first:position][known].tolist()
    assert all(set(label) == {"flight_id", "late"} for label in labels.values())
    some = first + int(np.flatnonzero(two_days.late[first:position] == 1)[0])
    assert labels[two_days.frame["flight_id"][some]]["late"] is True
    assert feed.labels_sent == len(labels)


def test_a_broker_that_refuses_is_a_failure_of_the_feed(two_days, everloop, kafka, monkeypatch):
    monkeypatch.setattr(kafka, "refuses", True)
    feed = Feed(two_days, 0, lambda: 10, everloop, MODEL, "records", "broker")
    feed.start()
    until(lambda: feed.failure is not None)
    assert "no broker" in str(feed.failure)
    feed.stop()


def test_labels_outlast_an_ingest_that_is_away_for_a_moment(
    two_days, everloop, fake, kafka, monkeypatch
):
    monkeypatch.setattr("everloop.wire._FIRST_PAUSE_SECONDS", 0.01)
    fake.away = 3
    feed = Feed(two_days, 0, lambda: 20, everloop, MODEL, "records", "broker")
    feed.start()
    feed.end_of_year()
    until(lambda: feed.finished)
    assert feed.failure is None
    assert feed.labels_sent == len(fake.records) > 0
    assert len(set(fake.pushes)) == 1 and len(fake.pushes) == 4
