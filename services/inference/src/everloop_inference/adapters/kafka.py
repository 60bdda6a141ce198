"""The broker as the place where prediction logs go."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from everloop_inference.ports import Message, Outcome
from everloop_runtime.kafka import ensure_topics, producer

__all__ = ["KafkaSink"]

log = logging.getLogger(__name__)


class KafkaSink:
    """Sends with a producer that is thrown away at the first failure and made anew when a broker answers."""

    def __init__(self, bootstrap: str, send_seconds: float) -> None:
        """Takes the bootstrap servers and the time that the broker has for an acknowledgement."""
        self._bootstrap = bootstrap
        self._seconds = send_seconds
        self._producer: KafkaProducer | None = None

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See `ports.LogSink`."""
        try:
            client = self._connected()
            futures = [_begin(client, item) for item in messages]
        except (OSError, KafkaError) as error:
            log.debug("the broker is away: %s", error)
            self._abandon()
            return [Outcome.AWAY] * len(messages)
        deadline = time.monotonic() + self._seconds
        outcomes = [self._outcome(future, deadline) for future in futures]
        if Outcome.AWAY in outcomes:
            self._abandon()
        return outcomes

    def close(self) -> None:
        """See `ports.LogSink`."""
        if self._producer:
            _close(self._producer, self._seconds)
        self._producer = None

    def _abandon(self) -> None:
        """Drops the producer; it ends by itself once what it holds has timed out."""
        if self._producer:
            ending = (self._producer, 3 * self._seconds)
            threading.Thread(target=_close, args=ending, name="old producer", daemon=True).start()
        self._producer = None

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            # kafka-python waits 30 s for a port that is closed.
            _probe(self._bootstrap)
            ensure_topics(self._bootstrap)
            milliseconds = int(self._seconds * 1000)
            self._producer = producer(
                self._bootstrap,
                max_block_ms=milliseconds,
                request_timeout_ms=max(milliseconds - 100, 100),
                delivery_timeout_ms=milliseconds,
                reconnect_backoff_max_ms=1000,
            )
        return self._producer

    def _outcome(self, future: object, deadline: float) -> Outcome:
        try:
            if isinstance(future, KafkaError):
                raise future
            future.get(timeout=max(0.0, deadline - time.monotonic()))  # type: ignore[attr-defined]
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            log.error("the broker refuses a batch of predictions: %s", error)
            return Outcome.REFUSED
        except KafkaError as error:
            log.debug("no acknowledgement: %s", error)
            return Outcome.AWAY
        return Outcome.STORED


def _begin(client: KafkaProducer, item: Message) -> object:
    """Returns a future, or the error of a message that is too large to be sent at all."""
    try:
        return client.send(item.topic, key=item.key, value=item.value, headers=list(item.headers))
    except MessageSizeTooLargeError as error:
        return error


def _close(client: KafkaProducer, seconds: float) -> None:
    try:
        client.close(timeout=seconds)
    except KafkaError as error:  # it could not empty itself in time
        log.debug("a producer did not close: %s", error)


def _probe(bootstrap: str) -> None:
    """Raises OSError if no bootstrap server accepts a connection."""
    failure: OSError | None = None
    for server in bootstrap.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError as error:
            failure = error
    raise failure or OSError("no bootstrap server is named")
