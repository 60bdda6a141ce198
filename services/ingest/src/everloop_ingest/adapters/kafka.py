"""Kafka beside the writer's own consumer: end offsets, and the way onto the record topics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.producer.future import FutureRecordMetadata

from everloop_ingest.ports import Delivery
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.kafka import producer, wait_for_broker
from everloop_runtime.service import Stopper
from everloop_runtime.telemetry import trace_headers

__all__ = ["TopicEnds", "TopicProducer"]

_RECORD_BYTES = 512
"""What a record takes in memory besides its body while it is under way."""


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
        except KafkaError as error:
            raise _unavailable(
                f"the broker does not say how far {topic} reaches: {error}"
            ) from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Closes the connections."""
        if self._client is not None:
            self._client.close()


class TopicProducer:
    """Puts records on topics and waits for the broker, with a bound on the bytes under way."""

    def __init__(self, bootstrap: str, max_bytes: int, timeout_seconds: float) -> None:
        """Takes the bootstrap servers, the most bytes under way, and how long the broker may take."""
        self._bootstrap = bootstrap
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds
        self._bytes = 0
        self._room = threading.Condition()
        self._client: KafkaProducer | None = None

    def connect(self, topics: Iterable[str]) -> None:
        """Connects and learns where the topics are, so that no call has to wait for that.

        Raises:
            EverloopError: kind unavailable.
        """
        milliseconds = int(self._timeout * 1000)
        wait_for_broker(self._bootstrap, Stopper(), self._timeout)
        try:
            self._client = producer(
                self._bootstrap,
                max_block_ms=milliseconds,
                request_timeout_ms=milliseconds,
                # Never: after a batch has expired, an idempotent kafka-python producer hangs on its partition for ever.
                # What waits is bounded by the bytes under way.
                delivery_timeout_ms=2**31 - 1,
                bootstrap_timeout_ms=milliseconds,
                reconnect_backoff_max_ms=1000,
                batch_size=256 * 1024,
            )
            for topic in topics:
                self._client.partitions_for(topic)
        except KafkaError as error:
            raise _unavailable(f"the broker does not answer: {error}") from error

    def begin(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        timestamp: int,
        seconds: float,
        patience: float = 0.0,
    ) -> Delivery:
        """See `ports.RecordSink`."""
        client = self._client
        if client is None:
            raise _unavailable("not connected to the broker yet")
        self._take(sum(map(_size, records)), patience)
        deadline = time.monotonic() + min(seconds, self._timeout)
        headers = [(name, text.encode()) for name, text in trace_headers().items()]
        futures = []
        try:
            for record in records:
                key, value = record
                future = client.send(
                    topic, key=key, value=value, headers=headers, timestamp_ms=timestamp
                )
                futures.append(future)
                # The bytes are under way until the broker has them or the client gives up, whoever waits.
                future.add_both(self._give_back, _size(record))
                if time.monotonic() > deadline:
                    raise _unavailable(
                        f"the broker did not take all {len(records)} records in time"
                    )
        except KafkaError as error:
            raise _unavailable(f"the broker does not take records: {error}") from error
        finally:
            self._give_back(sum(map(_size, records[len(futures) :])))
        return _Delivery(futures, self._timeout)

    def close(self) -> None:
        """Sends what is under way, as far as the broker takes it, and closes the connections."""
        if self._client is not None:
            with suppress(KafkaError):  # nobody was told that these records are there
                self._client.close(timeout=self._timeout)

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

    def _give_back(self, size: int, _result: object = None) -> None:
        with self._room:
            self._bytes -= size
            self._room.notify_all()


class _Delivery:
    """Records that the client has taken."""

    def __init__(self, futures: Sequence[FutureRecordMetadata], timeout_seconds: float) -> None:
        self._futures = futures
        self._timeout = timeout_seconds

    def wait(self, seconds: float) -> None:
        """See `ports.Delivery`."""
        deadline = time.monotonic() + min(seconds, self._timeout)
        try:
            for future in self._futures:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
        except KafkaError as error:
            raise _unavailable(f"the broker does not take records: {error}") from error


def _size(record: tuple[bytes | None, bytes]) -> int:
    return _RECORD_BYTES + len(record[1])
