"""The broker as the place where prediction logs go; the loop that answers predictions does not wait for it."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Producer
from kafka.errors import KafkaError as AdminError

from everloop_inference.ports import Message, Outcome
from everloop_runtime.kafka import ensure_topics
from everloop_runtime.librdkafka import MAX_BYTES, fast_producer

__all__ = ["KafkaSink"]

log = logging.getLogger(__name__)

_REFUSALS = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE})


class KafkaSink:
    """Sends with a producer that is thrown away at the first failure and made anew when a broker answers."""

    def __init__(self, bootstrap: str, send_seconds: float, queue_bytes: int) -> None:
        """Takes the limits as the settings give them.

        Args:
            bootstrap: servers.
            send_seconds: time that the broker has for each step: to be reached, to have the topics, to acknowledge.
            queue_bytes: memory of what is handed over and not acknowledged; one message always has room.
        """
        self._bootstrap = bootstrap
        self._seconds = send_seconds
        self._queue_bytes = max(queue_bytes, MAX_BYTES)
        self._producer: Producer | None = None

    def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """See `ports.LogSink`."""
        outcomes: list[Outcome | None] = [None] * len(messages)
        try:
            client = self._connected()
            deadline = time.monotonic() + self._seconds
            for index, item in enumerate(messages):
                _begin(client, item, partial(_settle, outcomes, index), deadline)
            while None in outcomes and (left := deadline - time.monotonic()) > 0:
                client.poll(left)
        except (OSError, BufferError, AdminError, KafkaException) as error:
            log.debug("the broker is away: %s", error)
        except Exception:
            log.exception("the prediction log cannot be sent")
        settled = [outcome or Outcome.AWAY for outcome in outcomes]
        if Outcome.AWAY in settled:
            self._abandon()
        return settled

    def close(self) -> None:
        """See `ports.LogSink`."""
        self._abandon()

    def _abandon(self) -> None:
        """Drops the producer, with what nobody waits for any more."""
        producer, self._producer = self._producer, None
        if producer:
            producer.purge()
            # Serves the reports of what was purged: unserved ones keep the producer, and its messages, for ever.
            producer.flush(1)

    def _connected(self) -> Producer:
        if self._producer is None:
            # Elsewhere a port that is closed takes long to be noticed.
            _probe(self._bootstrap)
            ensure_topics(self._bootstrap, seconds=self._seconds)
            self._producer = fast_producer(
                self._bootstrap,
                {
                    "linger.ms": 0,
                    "queue.buffering.max.kbytes": -(-self._queue_bytes // 1024),
                    "delivery.timeout.ms": max(int(self._seconds * 1000), 1000),
                },
            )
        return self._producer


def _begin(
    client: Producer,
    item: Message,
    settle: Callable[[KafkaError | None, object], None],
    deadline: float,
) -> None:
    """Hands a message over, once there is room; one that is too large to be sent at all is settled at once.

    Raises:
        BufferError: there was no room until the deadline.
        KafkaException: it is not taken.
    """
    while True:
        try:
            client.produce(
                item.topic, item.value, item.key, headers=list(item.headers), on_delivery=settle
            )
            return
        except BufferError:
            # What is on disk may be more than the queue holds, and must not wait for ever.
            if time.monotonic() > deadline:
                raise
            client.poll(0.05)
        except KafkaException as error:
            if error.args[0].code() not in _REFUSALS:
                raise
            settle(error.args[0], None)
            return


def _settle(
    outcomes: list[Outcome | None], index: int, error: KafkaError | None, _: object
) -> None:
    """Called by the producer, inside `poll`."""
    if error is None:
        outcomes[index] = Outcome.STORED
    elif error.code() in _REFUSALS:
        log.error("the broker refuses a batch of predictions: %s", error)
        outcomes[index] = Outcome.REFUSED
    else:
        log.debug("no acknowledgement: %s", error)
        outcomes[index] = Outcome.AWAY


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
