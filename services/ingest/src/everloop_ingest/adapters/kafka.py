"""Kafka beside the writer's own consumer: end offsets, and the way onto the record topics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError as ConsumerError

from everloop_ingest.domain import RECORD_OVERHEAD_BYTES
from everloop_ingest.ports import Delivery
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.kafka import wait_for_broker
from everloop_runtime.librdkafka import fast_producer
from everloop_runtime.service import Component, Stopper
from everloop_runtime.telemetry import trace_headers

__all__ = ["TopicEnds", "TopicProducer"]

log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.2
"""How long the client may have nothing to say before somebody looks whether the service stops."""


def _unavailable(what: str) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "BROKER_UNAVAILABLE", what)


class TopicEnds:
    """How far topics reach, as a consumer of committed transactions sees it."""

    def __init__(self, bootstrap: str) -> None:
        """Takes the bootstrap servers; connects with the first question."""
        self._bootstrap = bootstrap.split(",")
        self._lock = threading.Lock()  # a consumer is for one thread at a time
        self._client: KafkaConsumer | None = None

    def end_offsets(self, topic: str, seconds: float) -> dict[int, int]:
        """See `ports.RecordLog`."""
        milliseconds = max(1, int(seconds * 1000))
        if not self._lock.acquire(timeout=seconds):
            raise _unavailable("the broker keeps another question waiting")
        try:
            if self._client is None:
                # A client that finds no broker leaves its sockets open: look first.
                wait_for_broker(",".join(self._bootstrap), Stopper(), seconds)
                self._client = KafkaConsumer(
                    bootstrap_servers=self._bootstrap,
                    isolation_level="read_committed",
                    bootstrap_timeout_ms=milliseconds,
                    reconnect_backoff_max_ms=1000,
                )
            partitions = self._client.partitions_for_topic(topic)
            if not partitions:  # not an empty answer: it would read as "nothing to catch up with"
                raise _unavailable(f"the broker does not know {topic} now")
            wanted = [TopicPartition(topic, number) for number in partitions]
            ends = self._client.end_offsets(wanted, timeout_ms=milliseconds)
            return {partition.partition: end for partition, end in ends.items()}
        except ConsumerError as error:
            raise _unavailable(
                f"the broker does not say how far {topic} reaches: {error}"
            ) from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            self._client.close()


class TopicProducer(Component):
    """Puts records on topics, with a bound on the bytes under way."""

    name = "record producer"

    def __init__(
        self, bootstrap: str, topics: Iterable[str], *, max_bytes: int, timeout_seconds: float
    ) -> None:
        """Takes the bootstrap servers, the topics, the most bytes under way, and how long the broker may take."""
        self._bootstrap = bootstrap
        self._topics = list(topics)
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds
        self._bytes = 0
        self._room = threading.Condition()
        self._client: Producer | None = None
        self._broken = False
        self._closing = threading.Event()

    def start(self, stopper: Stopper) -> None:
        """Connects and learns where the topics are, so that no call has to wait for that.

        Raises:
            EverloopError: kind unavailable.
        """
        wait_for_broker(self._bootstrap, stopper, self._timeout)
        if stopper.stopping:
            return
        client = self._make()
        try:
            for topic in self._topics:
                client.list_topics(topic, self._timeout)
        except KafkaException as error:
            raise _unavailable(f"the broker does not answer: {error}") from error
        self._client = client
        self._reports = threading.Thread(
            target=self._take_reports, name="delivery reports", daemon=True
        )
        self._reports.start()

    def begin(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timestamp: int,
        patience: float = 0.0,
    ) -> Delivery:
        """See `ports.RecordSink`."""
        client = self._client
        if client is None:
            raise _unavailable("not connected to the broker yet")
        size = sum(RECORD_OVERHEAD_BYTES + len(value) for _, value in records)
        self._take(size, patience)
        headers: list[tuple[str, str | bytes | None]] = list(trace_headers().items())
        delivery = _Delivery(len(records), self._timeout, partial(self._give_back, size))
        sent = 0
        try:
            for key, value in records:
                client.produce(
                    topic,
                    value,
                    key,
                    timestamp=timestamp,
                    headers=headers,
                    on_delivery=delivery.report,
                )
                sent += 1
        except KafkaException as error:
            raise _unavailable(f"the broker does not take records: {error}") from error
        finally:
            delivery.leave(len(records) - sent)
        return delivery

    def stop(self) -> None:
        """Sends what is under way, as far as the broker takes it, and closes the connections."""
        if self._client is not None:
            self._closing.set()
            self._reports.join()
            self._client.flush(self._timeout)  # nobody was told that the rest is there

    def _make(self) -> Producer:
        return fast_producer(
            self._bootstrap,
            {
                # What waits is bounded by the bytes under way.
                "queue.buffering.max.messages": 0,
                "queue.buffering.max.kbytes": 2**31 - 1,
                "delivery.timeout.ms": max(1000, int(self._timeout * 1000)),
                "batch.size": 256 * 1024,
                "error_cb": self._failed,
            },
        )

    def _failed(self, error: KafkaError) -> None:
        log.debug("librdkafka: %s", error)
        self._broken = self._broken or error.code() == KafkaError._FATAL

    def _take_reports(self) -> None:
        """Lets the client say what has become of records, until the service stops."""
        client = self._client
        while client is not None and not self._closing.is_set():
            client.poll(_REPORT_SECONDS)
            if (
                self._broken
            ):  # for good: what is under way is lost to it, and nothing is taken any more
                log.error("the way to the broker is made anew")
                gone, self._client, self._broken = client, self._make(), False
                gone.purge()
                gone.flush(self._timeout)
                client = self._client

    def _take(self, size: int, patience: float) -> None:
        with self._room:
            fits = self._room.wait_for(
                lambda: not self._bytes or self._bytes + size <= self._max_bytes, patience
            )
            if not fits:
                raise EverloopError(
                    Kind.EXHAUSTED,
                    "TOO_MANY_BYTES",
                    f"{self._bytes} bytes are under way to the broker; send again later",
                )
            self._bytes += size

    def _give_back(self, size: int) -> None:
        with self._room:
            self._bytes -= size
            self._room.notify_all()


class _Delivery:
    """Records that the client has taken; each of them is reported once, whoever waits."""

    def __init__(self, records: int, timeout_seconds: float, settled: Callable[[], None]) -> None:
        """Takes how many records there are, how long a wait may take, and what to call when none is under way."""
        self._left = records
        self._timeout = timeout_seconds
        self._settled = settled
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: KafkaError | None = None

    def report(self, error: KafkaError | None, _message: object) -> None:
        """Notes what has become of one record; called by the client."""
        if error is not None:
            self._error = error
        self.leave(1)

    def leave(self, records: int) -> None:
        """Counts records that are not under way any more, or never were."""
        with self._lock:
            self._left -= records
            last = not self._left and not self._done.is_set()
            if last:
                self._done.set()
        if last:
            self._settled()

    def wait(self, seconds: float) -> None:
        """See `ports.Delivery`."""
        if not self._done.wait(min(seconds, self._timeout)):
            raise _unavailable("the broker did not take all records in time")
        if self._error is not None:
            raise _unavailable(f"the broker does not take records: {self._error.str()}")
