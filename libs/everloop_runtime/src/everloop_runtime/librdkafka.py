"""A producer for many messages: librdkafka's threads compress, frame and send without Python's lock."""

from __future__ import annotations

import logging
from typing import Any

from confluent_kafka import Producer

__all__ = ["MAX_BYTES", "fast_producer"]

log = logging.getLogger(__name__)

MAX_BYTES = 16 * 1024 * 1024
"""Largest message that is handed to the broker; a topic's own limit may be lower."""


def fast_producer(bootstrap: str, options: dict[str, Any]) -> Producer:
    """A producer that acknowledges only what every in-sync replica has (idempotent, in order); connects by itself.

    Args:
        bootstrap: servers.
        options: librdkafka's, in place of those below or beside them.
    """
    return Producer(
        {
            "bootstrap.servers": bootstrap,
            "acks": "all",
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # as all other clients have it
            "compression.type": "lz4",
            "message.max.bytes": MAX_BYTES,
            "reconnect.backoff.max.ms": 1000,
            "log_level": 0,
            "error_cb": lambda error: log.debug("librdkafka: %s", error),
            **options,
        }
    )
