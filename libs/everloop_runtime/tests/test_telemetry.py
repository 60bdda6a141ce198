"""Spans reach a collector by OTLP, and a trace goes on from process to process by the headers of events."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from libs.everloop_runtime.tests.collector import Sent, collecting

FIRST = """
from everloop_contracts.stubs.everloop.training.v1.events_pb2 import TrainingFailed
from everloop_runtime.events import encode, new_event
from everloop_runtime.telemetry import configure, span
configure("trainer")
with span("training"):
    _, value, headers = encode(new_event("test", "trips", TrainingFailed(pipeline="trips")))
print(value.hex(), dict(headers)["traceparent"].decode())
"""
SECOND = """
import sys
from everloop_runtime.telemetry import configure, span
configure("registry_gateway")
with span("handle TrainingFailed", {"traceparent": sys.argv[1]}, attributes={"who": "second"}):
    with span("register"):
        pass
"""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Sent]]]:
    with collecting() as found:
        yield found


def run(program: str, *arguments: str, endpoint: str = "") -> str:
    environment = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.split()[-1] if done.stdout else ""


def test_a_trace_goes_on_in_another_process_and_both_export_it(collector) -> None:
    endpoint, spans = collector
    parent = run(FIRST, endpoint=endpoint)
    run(SECOND, parent, endpoint=endpoint)
    named = {span.name: (service, span) for service, span in spans}
    assert {name: service for name, (service, _) in named.items()} == {
        "training": "everloop-trainer",
        "handle TrainingFailed": "everloop-registry-gateway",
        "register": "everloop-registry-gateway",
    }
    first, handle, inner = (
        named[name][1] for name in ("training", "handle TrainingFailed", "register")
    )
    assert first.trace_id == handle.trace_id == inner.trace_id
    assert (handle.parent_span_id, inner.parent_span_id) == (first.span_id, handle.span_id)
    assert [(a.key, a.value.string_value) for a in handle.attributes] == [("who", "second")]


def test_without_an_endpoint_nothing_is_sent(collector) -> None:
    _, spans = collector
    assert run(FIRST).count("-") == 3
    assert spans == []
