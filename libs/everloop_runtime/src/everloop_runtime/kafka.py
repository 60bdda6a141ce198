"""Kafka: topics, the outbox's relay and the consumer of events."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    TopicAlreadyExistsError,
)
from opentelemetry.trace import SpanKind
from prometheus_client import Counter

from everloop_runtime.database import Database, Pending
from everloop_runtime.errors import EverloopError, Kind, waiting_mends
from everloop_runtime.events import TOPICS, Event, Headers, decode
from everloop_runtime.service import Component, Stopper, backoff
from everloop_runtime.telemetry import span

__all__ = [
    "EventConsumer",
    "OutboxRelay",
    "Topics",
    "ensure_topics",
    "producer",
    "wait_for_broker",
]

log = logging.getLogger(__name__)

EVENT_PARTITIONS = 6
DEAD_LETTERS = "everloop.events.dead-letters"
SEND_SECONDS = 30.0
# Between two tries of one event. The pauses of the default number of tries add up to more than a minute: a server that
# answers with errors for that long is usually being mended.
FIRST_PAUSE = 0.4
LONGEST_PAUSE = 10.0
# A commit takes as long as handling a small event: one for those of a poll, unless they take longer than this.
COMMIT_SECONDS = 1.0
# Of an error's text in a dead letter: a message that grows beyond the broker's limit could not be buried.
NOTE_CHARACTERS = 2_000
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)
# The client's default lets half a minute pass after the broker is back.
RECONNECT_MS = 1_000

HANDLED = Counter(
    "everloop_events_handled", "Events that a consumer has settled.", ["type", "outcome"]
)
RELAYED = Counter("everloop_outbox_relayed", "Messages that the outbox relay has sent.", ["topic"])
REFUSED = Counter(
    "everloop_outbox_refused", "Messages that the broker refused as too large.", ["topic"]
)


def wait_for_broker(bootstrap: str, stopper: Stopper, seconds: float = 120.0) -> None:
    """Waits until a bootstrap server accepts connections.

    kafka-python's own first attempt at a closed port takes 30 s. Returns at once when the service stops.

    Raises:
        EverloopError: kind unavailable, reason BROKER_UNREACHABLE, after `seconds`.
    """
    began = time.monotonic()
    warned = False
    while not stopper.stopping:
        for server in bootstrap.split(","):
            host, _, port = server.strip().rpartition(":")
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                continue
        if not warned:
            log.warning("waiting for a Kafka broker at %s", bootstrap)
            warned = True
        if time.monotonic() - began > seconds:
            raise EverloopError(
                Kind.UNAVAILABLE, "BROKER_UNREACHABLE", f"no Kafka broker answers at {bootstrap}"
            )
        stopper.wait(0.2)


def producer(bootstrap: str, **options: object) -> KafkaProducer:
    """A producer that acknowledges only what every in-sync replica has (idempotent, in order)."""
    return KafkaProducer(
        bootstrap_servers=bootstrap.split(","),
        acks="all",
        **{
            "enable_idempotence": True,
            "linger_ms": 5,
            "compression_type": "lz4",
            "max_request_size": 16 * 1024 * 1024,
            "reconnect_backoff_max_ms": RECONNECT_MS,
            **options,
        },
    )


def ensure_topics(
    bootstrap: str, partitions: Mapping[str, int] = {}, *, seconds: float = 30.0
) -> None:
    """Makes the event topics and those in `partitions` (name to number) where they do not exist.

    The broker has `seconds` for each step: the connection, an answer, and the new topics on every broker.

    Raises:
        KafkaError: it does not keep to them, or refuses.
    """
    wanted = {topic: EVENT_PARTITIONS for topic in (*TOPICS.values(), DEAD_LETTERS)} | dict(
        partitions
    )
    patience = int(seconds * 1000)
    admin = KafkaAdminClient(
        bootstrap_servers=bootstrap.split(","),
        bootstrap_timeout_ms=patience,
        request_timeout_ms=patience,
    )
    try:
        missing = set(wanted) - set(admin.list_topics())
        for topic in sorted(missing):
            # Replication -1: the broker's default, 1 on a laptop and 3 in production.
            try:
                admin.create_topics(
                    [NewTopic(name=topic, num_partitions=wanted[topic], replication_factor=-1)]
                )
            except TopicAlreadyExistsError:
                continue  # another service was quicker
        # Until every broker knows them, consumers and producers would be told that they do not exist.
        admin.wait_for_topics(sorted(missing), timeout_ms=patience)
    finally:
        admin.close()


class Topics(Component):
    """Makes the topics before anything reads or writes them."""

    name = "topics"

    def __init__(self, bootstrap: str, partitions: Mapping[str, int] = {}) -> None:
        """Takes the broker and the service's own topics (name to number of partitions)."""
        self._bootstrap = bootstrap
        self._partitions = partitions

    def start(self, stopper: Stopper) -> None:
        """Waits for the broker, then makes what is missing."""
        wait_for_broker(self._bootstrap, stopper)
        if not stopper.stopping:
            ensure_topics(self._bootstrap, self._partitions)

    def stop(self) -> None:
        """Topics stay."""


class _DeadLetters:
    """Where messages go that nobody can take."""

    def __init__(self, bootstrap: str) -> None:
        # An idempotent producer is of no use any more once the broker has refused one message.
        self._client = producer(bootstrap, enable_idempotence=False)

    def add(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        notes: Mapping[str, str],
    ) -> None:
        """Sends a message with why it is here; without its content where that is too large for this topic as well."""
        noted = [*headers, *((f"everloop-{name}", text.encode()) for name, text in notes.items())]
        try:
            self._send(key, value, noted)
        except TOO_LARGE:
            log.error("%s leave %d bytes of content behind", DEAD_LETTERS, len(value or b""))
            self._send(key, b"", noted)

    def _send(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        sent = self._client.send(DEAD_LETTERS, key=key, value=value, headers=headers)
        sent.get(timeout=SEND_SECONDS)

    def close(self) -> None:
        """Ends the connection."""
        self._client.close(timeout=5)


class OutboxRelay(Component):
    """Sends the outbox to Kafka in order; a message leaves the outbox when the broker has it.

    A crash between the two sends it again, with the same event id: consumers' inboxes drop the repeat. A message that
    the broker refuses as too large, which a topic's own limit may make it do, goes to the dead letters: those behind it
    must not wait for ever.
    """

    name = "outbox relay"

    def __init__(self, database: Database, bootstrap: str, batch: int = 200) -> None:
        """Takes the service's database and the broker; `batch` bounds what is in flight."""
        self._database = database
        self._bootstrap = bootstrap
        self._batch = batch
        self._wake = threading.Event()

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""
        self._stopper = stopper
        self._database.on_publish(self._wake.set)
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Sends what is left, at most one batch, and ends the thread."""
        self._wake.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        relay = self._connect_and_relay
        while not self._stopper.stopping:
            try:
                wait_for_broker(self._bootstrap, self._stopper, math.inf)
                if not self._stopper.stopping:
                    relay()
                relay = self._connect_and_relay
            except KafkaError as error:
                if isinstance(error, TOO_LARGE):
                    relay = self._single_out
                # Order matters more than speed: a fresh client forgets what is in flight, and the outbox goes
                # again from its oldest message.
                log.warning("outbox waits for the broker: %r", error)
                self._stopper.wait(1.0)
            except EverloopError as error:
                if not waiting_mends(error):
                    raise
                log.warning("outbox waits for the database: %s", error)
                self._stopper.wait(1.0)

    def _connect_and_relay(self) -> None:
        client = producer(self._bootstrap)
        try:
            last = False
            while not last:
                last = self._stopper.stopping
                self._wake.clear()
                if not self._relay(client) and not last:
                    self._wake.wait(1.0)
        finally:
            client.close(timeout=5)

    def _relay(self, client: KafkaProducer) -> bool:
        """Sends one batch; returns whether there was anything to send.

        Raises:
            KafkaError: the broker does not answer; what it has is out of the outbox, the rest is still there.
        """
        rows = self._database.pending(self._batch)
        done: list[int] = []
        try:
            futures = []
            for row in rows:
                futures.append(_send(client, row))
            for row, future in zip(rows, futures, strict=True):
                future.get(timeout=SEND_SECONDS)
                RELAYED.labels(row.topic).inc()
                done.append(row.position)
        finally:
            if done:
                self._database.sent(done)
        return bool(rows)

    def _single_out(self) -> None:
        """Sends one batch message by message, and what the broker refuses as too large to the dead letters.

        A client fails everything that is in flight with the refusal of one message, and takes nothing after it.
        """
        client = producer(self._bootstrap)
        try:
            for row in self._database.pending(self._batch):
                try:
                    _send(client, row).get(timeout=SEND_SECONDS)
                    RELAYED.labels(row.topic).inc()
                except TOO_LARGE as error:
                    self._refuse(row, error)
                    client.close(timeout=5)
                    client = producer(self._bootstrap)
                self._database.sent([row.position])
        finally:
            client.close(timeout=5)

    def _refuse(self, row: Pending, error: KafkaError) -> None:
        headers, size = _headers(row), len(row.value)
        log.error("%s refuses %d bytes, they go to %s: %r", row.topic, size, DEAD_LETTERS, headers)
        notes = {
            "reason": "MESSAGE_TOO_LARGE",
            "message": str(error)[:NOTE_CHARACTERS],
            "origin": f"{row.topic}/outbox/{row.position}",
        }
        letters = _DeadLetters(self._bootstrap)
        try:
            letters.add(row.key, row.value, headers, notes)
        finally:
            letters.close()
        REFUSED.labels(row.topic).inc()


def _send(client: KafkaProducer, row: Pending) -> Any:
    return client.send(row.topic, key=row.key, value=row.value, headers=_headers(row))


def _headers(row: Pending) -> list[tuple[str, bytes]]:
    return [(name, item.encode("latin-1")) for name, item in json.loads(row.headers)]


class EventConsumer(Component):
    """Hands events to one handler, in order per partition, at least once; commits after success, some at a time.

    A handler is idempotent (see `UnitOfWork.first_time`). It fails by raising: what waiting mends
    (`errors.waiting_mends`) is tried again for as long as it lasts; what is invalid goes to the dead-letter topic at
    once; anything else is tried a finite number of times first. Then the partition moves on.
    """

    def __init__(
        self,
        bootstrap: str,
        group: str,
        topics: Iterable[str],
        handler: Callable[[Event], None],
        *,
        attempts: int,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        """Takes the consumer group (`everloop.<service>`), the topics, what to do with an event and how often."""
        self.name = f"consumer {group}"
        self._bootstrap = bootstrap
        self._group = group
        self._topics = sorted(set(topics))
        self._handler = handler
        self._attempts = attempts
        self._first_pause = first_pause

    def start(self, stopper: Stopper) -> None:
        """Starts the thread."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)

    def stop(self) -> None:
        """Ends the thread after the event in hand."""
        self._thread.join(timeout=30)

    def _run(self) -> None:
        wait_for_broker(self._bootstrap, self._stopper, math.inf)
        if self._stopper.stopping:
            return
        consumer = KafkaConsumer(
            *self._topics,
            bootstrap_servers=self._bootstrap.split(","),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=50,
            # A handler may wait for another service; its thread sends no poll meanwhile.
            max_poll_interval_ms=900_000,
            session_timeout_ms=10_000,
            heartbeat_interval_ms=2_000,
            reconnect_backoff_max_ms=RECONNECT_MS,
        )
        self._dead_letters = _DeadLetters(self._bootstrap)
        try:
            while not self._stopper.stopping:
                for partition, records in consumer.poll(timeout_ms=500).items():
                    self._settle(consumer, partition, records)
        finally:
            self._dead_letters.close()
            consumer.close()

    def _settle(
        self, consumer: KafkaConsumer, partition: TopicPartition, records: list[Any]
    ) -> None:
        """Handles the records of one poll, and commits what it has settled: at the end, and while that takes long."""
        settled, committed = None, time.monotonic()
        for record in records:
            if not self._handle(record):
                break  # stopping: the rest is not committed and comes again
            settled = record.offset + 1
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit(consumer, partition, settled)
                settled, committed = None, time.monotonic()
        if settled is not None:
            self._commit(consumer, partition, settled)

    def _commit(self, consumer: KafkaConsumer, partition: TopicPartition, offset: int) -> None:
        try:
            consumer.commit({partition: OffsetAndMetadata(offset, "", -1)})
        except KafkaError as error:
            # Another member may repeat the events; the next commit covers them otherwise.
            log.warning("offset %d of %s is not committed: %r", offset, partition, error)

    def _handle(self, record: Any) -> bool:
        """Handles one record; False if the service stops before it is settled."""
        value, headers = record.value, record.headers
        attempt = 0
        kind = "unknown"
        while not self._stopper.stopping:
            attempt += 1
            try:
                event = decode(value, headers)
                kind = event.type
                attributes = {
                    "messaging.system": "kafka",
                    "messaging.destination.name": record.topic,
                    "messaging.message.id": event.id,
                    "everloop.pipeline": event.pipeline,
                }
                with span(
                    f"handle {kind}", event.trace, kind=SpanKind.CONSUMER, attributes=attributes
                ):
                    self._handler(event)
                HANDLED.labels(kind, "done").inc()
                return True
            except Exception as error:
                passing = waiting_mends(error)
                # What is invalid stays so: trying again would only hold the partition.
                invalid = isinstance(error, EverloopError) and error.kind is Kind.INVALID
                if invalid or (attempt >= self._attempts and not passing):
                    return self._bury(record, kind, error)
                log.warning("%s failed, attempt %d: %s", kind, attempt, error, exc_info=not passing)
                self._stopper.wait(backoff(attempt, self._first_pause, LONGEST_PAUSE))
        return False

    def _bury(self, record: Any, kind: str, error: Exception) -> bool:
        """Puts a record that cannot be handled aside; False if the service stops before the broker has it."""
        log.error("event goes to %s: %s", DEAD_LETTERS, error, exc_info=error)
        reason = error.reason if isinstance(error, EverloopError) else type(error).__name__
        origin = f"{record.topic}/{record.partition}/{record.offset}"
        message = str(error)[:NOTE_CHARACTERS]
        notes = {"reason": reason, "message": message, "group": self._group, "origin": origin}
        attempt = 0
        while not self._stopper.stopping:
            attempt += 1
            try:
                self._dead_letters.add(record.key, record.value, record.headers, notes)
            except KafkaError as away:
                log.warning("%s is not in %s yet: %r", origin, DEAD_LETTERS, away)
                self._stopper.wait(backoff(attempt, self._first_pause, LONGEST_PAUSE))
            else:
                HANDLED.labels(kind, "dead_lettered").inc()
                return True
        return False
