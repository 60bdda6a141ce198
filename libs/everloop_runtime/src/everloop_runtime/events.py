"""Events: a Protobuf message in a CloudEvents envelope, in Kafka's binary content mode."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from google.protobuf.message import DecodeError, Message

from everloop_contracts.events import (
    ACTUALS,
    DATASETS,
    DRIFT,
    MODELS,
    PREDICTIONS,
    TOPICS,
    TRAININGS,
    message_class,
)
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.telemetry import trace_headers

__all__ = [
    "ACTUALS",
    "DATASETS",
    "DRIFT",
    "MODELS",
    "PREDICTIONS",
    "TOPICS",
    "TRAININGS",
    "Event",
    "Headers",
    "decode",
    "encode",
    "new_event",
]

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        id: unique; a consumer that has seen it does nothing.
        type: full name of the Protobuf message.
        source: service that sent it.
        pipeline: pipeline it concerns; the Kafka key.
        data: the message.
        cause: id of the event or request that caused it; empty if none.
        time: when it happened.
        trace: trace context headers.
    """

    id: str
    type: str
    source: str
    pipeline: str
    data: Message
    cause: str = ""
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    trace: dict[str, str] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        """Topic it belongs on."""
        return TOPICS[self.type]


def new_event(source: str, pipeline: str, data: Message, *, cause: str = "", id: str = "") -> Event:
    """Makes an event; give an `id` of your own where a repeat must be the same event."""
    return Event(
        id=id or str(uuid.uuid4()),
        type=data.DESCRIPTOR.full_name,
        source=source,
        pipeline=pipeline,
        data=data,
        cause=cause,
        trace=trace_headers(),
    )


def encode(event: Event) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Returns the Kafka key, value and headers of an event."""
    headers = {
        "content-type": "application/protobuf",
        "ce_specversion": "1.0",
        "ce_id": event.id,
        "ce_type": event.type,
        "ce_source": event.source,
        "ce_subject": event.pipeline,
        "ce_time": event.time.isoformat(),
        "causationid": event.cause,
        **event.trace,
    }
    return (
        event.pipeline.encode(),
        event.data.SerializeToString(),
        [(key, value.encode()) for key, value in headers.items()],
    )


def decode(value: bytes, headers: Headers) -> Event:
    """Reads an event from a Kafka record.

    Raises:
        EverloopError: kind invalid, reason MALFORMED_EVENT: not an envelope, an unknown type or a broken message.
    """
    names = {key: bytes(item).decode(errors="replace") for key, item in headers if item is not None}
    try:
        type_name = names["ce_type"]
        if type_name not in TOPICS:
            raise EverloopError(Kind.INVALID, "MALFORMED_EVENT", f"unknown event type {type_name}")
        if not names["ce_id"]:
            raise EverloopError(Kind.INVALID, "MALFORMED_EVENT", "an event without an id")
        return Event(
            id=names["ce_id"],
            type=type_name,
            source=names.get("ce_source", ""),
            pipeline=names.get("ce_subject", ""),
            data=message_class(type_name).FromString(value),
            cause=names.get("causationid", ""),
            time=datetime.fromisoformat(names["ce_time"]),
            trace={key: names[key] for key in ("traceparent", "tracestate") if key in names},
        )
    except (KeyError, ValueError, DecodeError, TypeError) as error:
        raise EverloopError(Kind.INVALID, "MALFORMED_EVENT", f"not an event: {error!r}") from error
