"""The trace of a record goes on to the event that announces the version that the record is in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from services.ingest.tests.fakes import Message

from everloop_runtime.telemetry import configure, span, trace_headers

Make = Callable[..., bytes]


@pytest.fixture(autouse=True)
def tracer() -> None:
    configure("ingest")


def send(world: Any, value: bytes, **headers: str) -> None:
    """Puts a message with headers on a partition."""
    offset = len(world.topic[0])
    encoded = [(name, text.encode()) for name, text in headers.items()]
    world.topic[0].append(Message(offset, offset, b"key", value, encoded))


def announced(world: Any) -> str:
    """Trace id of the newest announcement."""
    traceparent: str = world.events("everloop.datasets")[-1].trace["traceparent"]
    return traceparent.split("-")[1]


def test_a_version_goes_on_with_the_trace_of_its_last_record(world: Any, make_record: Make) -> None:
    traces = []
    for record in ("a", "b"):
        with span("a client pushes"):
            headers = trace_headers()
        send(world, make_record(record), **headers)
        traces.append(headers["traceparent"].split("-")[1])
    send(world, make_record("c"))
    world.cut(world.pipeline, "r1", 5.0)
    assert announced(world) == traces[-1]

    with span("a client pushes again"):
        headers = trace_headers()
    send(world, make_record("d"), **headers)
    world.settle_all()
    world.restart()  # the process that cuts is not the one that stored the record
    world.cut(world.pipeline, "r2", 5.0)
    assert announced(world) == headers["traceparent"].split("-")[1]


@pytest.mark.parametrize("traceparent", ["", "00-1-2-01", "00-" + "0" * 100_000, "x" * 55])
def test_what_is_no_trace_is_not_gone_on_with(
    world: Any, make_record: Make, traceparent: str
) -> None:
    send(world, make_record("a"), traceparent=traceparent)
    with span("a client asks for a version"):
        asked = trace_headers()["traceparent"].split("-")[1]
        world.cut(world.pipeline, "r1", 5.0)
    assert announced(world) == asked
