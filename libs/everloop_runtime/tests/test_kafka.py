"""Outbox relay and event consumer against a real broker."""

from __future__ import annotations

import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaTimeoutError
from prometheus_client import REGISTRY

from everloop import stack
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import TrainingFailed
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.events import TOPICS, Event, decode, encode, new_event
from everloop_runtime.kafka import (
    DEAD_LETTERS,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    EventConsumer,
    OutboxRelay,
    _DeadLetters,
    ensure_topics,
    producer,
    wait_for_broker,
)
from everloop_runtime.service import Component, Stopper, backoff
from everloop_runtime.settings import ServiceSettings

DEADLINE = 40.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("kafka")
    stack.up(home, only=["kafka"])
    yield home
    stack.down(home)


@pytest.fixture(scope="module")
def bootstrap(home: Path) -> str:
    address = stack.load(home).kafka_bootstrap
    ensure_topics(address)
    return address


@pytest.fixture
def topic(bootstrap: str) -> str:
    name = f"test.{uuid.uuid4()}"
    ensure_topics(bootstrap, {name: 2})
    return name


def eventually(holds: Callable[[], bool], seconds: float = DEADLINE) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


@contextmanager
def running(component: Component) -> Iterator[Stopper]:
    stopper = Stopper()
    component.start(stopper)
    try:
        yield stopper
    finally:
        stopper.stop()
        component.stop()


def event(number: int, pipeline: str = "late") -> Event:
    message = TrainingFailed(pipeline=pipeline, dataset_version=number)
    return new_event("test", pipeline, message, id=f"{uuid.uuid4()}-{number}")


def number_of(item: Event) -> int:
    assert isinstance(item.data, TrainingFailed)
    return item.data.dataset_version


def send(bootstrap: str, topic: str, events: list[Event]) -> None:
    client = producer(bootstrap)
    for item in events:
        key, value, headers = encode(item)
        client.send(topic, key=key, value=value, headers=headers)
    client.flush()
    client.close()


def records(bootstrap: str, topic: str) -> list[Any]:
    """Everything that is on a topic now, in order per partition."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    partitions = [TopicPartition(topic, n) for n in consumer.partitions_for_topic(topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends = consumer.end_offsets(partitions)
    found: list[Any] = []
    deadline = time.monotonic() + DEADLINE
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        assert time.monotonic() < deadline
        for batch in consumer.poll(timeout_ms=200).values():
            found += batch
    consumer.close()
    return found


def dead_letters(bootstrap: str, topic: str) -> list[dict[str, str]]:
    """Notes on the dead letters that came from a topic."""
    found = []
    for record in records(bootstrap, DEAD_LETTERS):
        notes = {
            key.removeprefix("everloop-"): value.decode()
            for key, value in record.headers
            if key.startswith("everloop-")
        }
        if notes["origin"].startswith(f"{topic}/"):
            found.append(notes)
    return found


def consumer(
    bootstrap: str, topic: str, handler: Callable[[Event], None], group: str = ""
) -> EventConsumer:
    return EventConsumer(
        bootstrap, group or f"test.{topic}", [topic], handler, attempts=3, first_pause=0.005
    )


def test_no_broker_is_unavailable_after_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(EverloopError) as caught:
        wait_for_broker(f"127.0.0.1:{port}", Stopper(), 0.3)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "BROKER_UNREACHABLE")


def test_waiting_for_a_broker_ends_when_the_service_stops():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    stopper = Stopper()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait_for_broker, f"127.0.0.1:{port}", stopper, 60)
        stopper.stop()
        waiting.result(timeout=5)


@pytest.mark.e2e
def test_topics_are_made_once_by_many(bootstrap):
    name = f"test.{uuid.uuid4()}"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ensure_topics(bootstrap, {name: 7}), range(4)))
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    assert set(TOPICS.values()) | {name, DEAD_LETTERS} <= set(admin.list_topics())
    (described,) = admin.describe_topics([name])
    assert len(described["partitions"]) == 7
    admin.close()


@pytest.mark.e2e
def test_what_is_committed_arrives_once_in_order_and_leaves_the_outbox(bootstrap, topic, database):
    sent: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    with running(OutboxRelay(database, bootstrap, batch=20)):
        for number in range(150):
            pipeline = "abc"[number % 3]
            with database.unit_of_work() as work:
                work.send(topic, *encode(event(number, pipeline)))
            sent[pipeline].append(number)
        eventually(lambda: not database.pending(1))
    arrived: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    for record in records(bootstrap, topic):
        item = decode(record.value, record.headers)
        arrived[item.pipeline].append(number_of(item))
    assert arrived == sent


@pytest.mark.e2e
def test_a_commit_wakes_the_relay(bootstrap, topic, database):
    with running(OutboxRelay(database, bootstrap)):
        with database.unit_of_work() as work:
            work.send(topic, *encode(event(0)))
        eventually(lambda: not database.pending(1))  # connected from here on
        took = []
        for number in range(1, 6):
            began = time.monotonic()
            with database.unit_of_work() as work:
                work.send(topic, *encode(event(number)))
            eventually(lambda: not database.pending(1))
            took.append(time.monotonic() - began)
    assert min(took) < 0.5, "faster than the relay's own round"


def limit(bootstrap: str, topic: str, message_bytes: int) -> None:
    """Makes a topic refuse larger messages."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap)
    resource = ConfigResource(
        ConfigResourceType.TOPIC, topic, {"max.message.bytes": str(message_bytes)}
    )
    admin.alter_configs([resource])
    admin.close()


@pytest.mark.e2e
def test_a_message_that_the_broker_refuses_as_too_large_is_buried_and_holds_up_nobody(
    bootstrap, topic, database
):
    limit(bootstrap, topic, 2000)
    with database.unit_of_work() as work:
        for number in range(5):
            key, value, headers = encode(event(number))
            large = number in (1, 3)
            work.send(
                topic, key, random.Random(number).randbytes(9000) if large else value, headers
            )
    before = REGISTRY.get_sample_value("everloop_outbox_refused_total", {"topic": topic}) or 0
    with running(OutboxRelay(database, bootstrap)) as stopper:
        eventually(lambda: not database.pending(1))
        assert not stopper.failed
    arrived = [number_of(decode(r.value, r.headers)) for r in records(bootstrap, topic)]
    assert sorted(set(arrived)) == [0, 2, 4]
    notes = dead_letters(bootstrap, topic)
    assert [note["reason"] for note in notes] == ["MESSAGE_TOO_LARGE"] * 2
    buried = [record.value for record in records(bootstrap, DEAD_LETTERS)]
    assert random.Random(3).randbytes(9000) in buried
    assert (
        REGISTRY.get_sample_value("everloop_outbox_refused_total", {"topic": topic}) == before + 2
    )


@pytest.mark.e2e
def test_what_the_dead_letters_refuse_too_leaves_its_content_behind(bootstrap, topic, database):
    limit(bootstrap, topic, 2000)
    limit(bootstrap, DEAD_LETTERS, 3000)
    try:
        with database.unit_of_work() as work:
            key, _, headers = encode(event(0))
            work.send(topic, key, random.Random(0).randbytes(9000), headers)
        with running(OutboxRelay(database, bootstrap)):
            eventually(lambda: not database.pending(1))
    finally:
        limit(bootstrap, DEAD_LETTERS, 1048588)
    (notes,) = dead_letters(bootstrap, topic)
    assert notes["reason"] == "MESSAGE_TOO_LARGE"


@pytest.mark.e2e
def test_a_database_that_is_away_is_waited_for(bootstrap, topic, database, monkeypatch):
    """The relay looks at it once a second: an outage would end the service, and every other service with it."""
    away = [EverloopError(Kind.UNAVAILABLE, "DATABASE_UNAVAILABLE", "away")] * 2
    pending = database.pending

    def flaky(limit: int) -> Any:
        if away:
            raise away.pop()
        return pending(limit)

    monkeypatch.setattr(database, "pending", flaky)
    with database.unit_of_work() as work:
        work.send(topic, *encode(event(7)))
    with running(OutboxRelay(database, bootstrap)) as stopper:
        eventually(lambda: not pending(1))
        assert not (away or stopper.stopping)


@pytest.mark.e2e
def test_stopping_sends_what_is_left(bootstrap, topic, database):
    relay = OutboxRelay(database, bootstrap)
    with running(relay):
        with database.unit_of_work() as work:
            work.send(topic, *encode(event(1)))
        eventually(lambda: not database.pending(1))
        with database.unit_of_work() as work:
            work.send(topic, *encode(event(2)))
    assert not database.pending(1)
    assert len(records(bootstrap, topic)) == 2


@pytest.mark.e2e
def test_a_crash_after_sending_sends_again_and_loses_nothing(
    bootstrap, topic, database, monkeypatch
):
    events = [event(number) for number in range(5)]
    with database.unit_of_work() as work:
        for item in events:
            work.send(topic, *encode(item))

    def killed(positions: list[int]) -> None:
        raise SystemError("the process is gone before the outbox knows")

    monkeypatch.setattr(database, "sent", killed)
    with running(OutboxRelay(database, bootstrap)) as stopper:
        assert stopper.wait(DEADLINE)
        assert stopper.failed
    monkeypatch.undo()
    assert len(database.pending(9)) == 5

    with running(OutboxRelay(database, bootstrap)):
        eventually(lambda: not database.pending(1))
    ids = [decode(record.value, record.headers).id for record in records(bootstrap, topic)]
    assert ids == [item.id for item in events] * 2, "the same events, for inboxes to drop"


def test_the_default_tries_of_an_event_take_more_than_a_minute_and_less_than_two():
    tries = ServiceSettings.model_fields["consumer_max_attempts"].default
    pauses = [backoff(attempt, FIRST_PAUSE, LONGEST_PAUSE) for attempt in range(1, tries)]
    assert 60 < sum(pauses) < 120


@pytest.mark.e2e
def test_a_poison_message_is_buried_and_the_next_is_handled(bootstrap, topic):
    tried: list[int] = []

    def handler(item: Event) -> None:
        tried.append(number_of(item))
        if number_of(item) == 2:
            raise ValueError("cannot digest this")

    send(bootstrap, topic, [event(number) for number in range(5)])
    with running(consumer(bootstrap, topic, handler)):
        eventually(lambda: tried[-1:] == [4])
    assert tried == [0, 1, 2, 2, 2, 3, 4]
    (notes,) = dead_letters(bootstrap, topic)
    assert notes["reason"] == "ValueError"
    assert notes["message"] == "cannot digest this"
    assert notes["group"] == f"test.{topic}"


@pytest.mark.e2e
def test_a_dead_letter_waits_for_its_topic(bootstrap, topic, monkeypatch):
    refused = [KafkaTimeoutError("away")] * 2
    send_letter = _DeadLetters._send

    def flaky(self, *message: Any) -> None:
        if refused:
            raise refused.pop()
        send_letter(self, *message)

    monkeypatch.setattr(_DeadLetters, "_send", flaky)
    handled: list[int] = []

    def handler(item: Event) -> None:
        if number_of(item) == 0:
            raise ValueError("cannot digest this")
        handled.append(number_of(item))

    send(bootstrap, topic, [event(0), event(1)])
    with running(consumer(bootstrap, topic, handler)) as stopper:
        eventually(lambda: handled == [1])
        assert not stopper.stopping
    assert len(dead_letters(bootstrap, topic)) == 1


@pytest.mark.e2e
def test_what_is_no_event_is_buried_at_once_with_its_bytes(bootstrap, topic):
    handled: list[int] = []
    client = producer(bootstrap)
    client.send(topic, key=b"late", value=b"\xff garbage", headers=[]).get(timeout=10)
    client.close()
    send(bootstrap, topic, [event(1)])
    with running(consumer(bootstrap, topic, lambda item: handled.append(number_of(item)))):
        eventually(lambda: handled == [1])
    (notes,) = dead_letters(bootstrap, topic)
    assert notes["reason"] == "MALFORMED_EVENT"
    buried = [record.value for record in records(bootstrap, DEAD_LETTERS)]
    assert b"\xff garbage" in buried


@pytest.mark.e2e
@pytest.mark.parametrize("kind", [Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE])
def test_what_waiting_mends_is_tried_until_it_is_over_and_nothing_overtakes(bootstrap, topic, kind):
    outage = 8  # more than the attempts that any other failure gets
    tried: list[int] = []

    def handler(item: Event) -> None:
        tried.append(number_of(item))
        if number_of(item) == 0 and len(tried) <= outage:
            raise EverloopError(kind, "NOT_NOW", "ask again")

    send(bootstrap, topic, [event(number) for number in range(3)])
    with running(consumer(bootstrap, topic, handler)):
        eventually(lambda: tried[-1:] == [2])
    assert tried == [0] * (outage + 1) + [1, 2]
    assert dead_letters(bootstrap, topic) == []


@pytest.mark.e2e
def test_handled_events_do_not_come_again_and_unhandled_ones_do(bootstrap, topic):
    first: list[int] = []
    second: list[int] = []
    stuck = threading.Event()

    def handler(item: Event) -> None:
        if number_of(item) == 2:
            stuck.set()
            raise EverloopError(Kind.UNAVAILABLE, "AWAY", "not today")
        first.append(number_of(item))

    send(bootstrap, topic, [event(number) for number in range(4)])
    with running(consumer(bootstrap, topic, handler, group=f"{topic}.g")):
        assert stuck.wait(DEADLINE)
    with running(
        consumer(bootstrap, topic, lambda e: second.append(number_of(e)), group=f"{topic}.g")
    ):
        eventually(lambda: len(second) == 2)
    assert (first, second) == ([0, 1], [2, 3])


@pytest.mark.e2e
@pytest.mark.parametrize(("seconds", "expected"), [(0.0, [None, 1, 2]), (60.0, [None] * 3)])
def test_offsets_are_committed_once_a_poll_unless_it_takes_long(
    bootstrap, topic, monkeypatch, seconds, expected
):
    monkeypatch.setattr("everloop_runtime.kafka.COMMIT_SECONDS", seconds)
    group = f"{topic}.offsets"
    looker = KafkaConsumer(bootstrap_servers=bootstrap, group_id=group, enable_auto_commit=False)
    seen: list[int | None] = []

    def committed() -> int | None:
        known = [looker.committed(TopicPartition(topic, number)) for number in range(2)]
        return next((offset for offset in known if offset is not None), None)

    send(bootstrap, topic, [event(number) for number in range(3)])
    with running(consumer(bootstrap, topic, lambda e: seen.append(committed()), group=group)):
        eventually(lambda: len(seen) == 3 and committed() == 3)
    looker.close()
    assert seen == expected


@pytest.mark.faults
@pytest.mark.slow
def test_a_broker_that_is_killed_costs_time_and_nothing_else(home, bootstrap, topic, database):
    handled: list[str] = []

    def handler(item: Event) -> None:
        with database.unit_of_work() as work:
            if work.first_time(item.id):
                handled.append(item.id)

    events = [event(number) for number in range(60)]
    relay, reader = OutboxRelay(database, bootstrap), consumer(bootstrap, topic, handler)
    with running(relay) as one, running(reader) as two:
        for number, item in enumerate(events):
            with database.unit_of_work() as work:
                work.send(topic, *encode(item))
            if number == 20:
                eventually(lambda: len(handled) > 5)
                killed = stack.kill(home, "kafka")
        stack.wait_healthy(home, "kafka", 60, not_pid=killed)
        eventually(lambda: len(handled) == len(events), 90)
        assert not (one.failed or two.failed)
    assert handled == [item.id for item in events]
