"""The trace of a prediction goes on to the request for a new model that it leads to."""

from __future__ import annotations

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from everloop_contracts.stubs.everloop.monitoring.v1.events_pb2 import (
    DriftDetected,
    RetrainRequested,
)
from everloop_monitor.consumer import handler
from everloop_runtime.events import decode, encode, new_event
from everloop_runtime.telemetry import configure, span, trace_headers


@pytest.fixture
def spans():
    """What is exported."""
    configure("monitor")
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    exporter = InMemorySpanExporter()
    processor = SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    yield exporter
    processor.shutdown()


def test_one_trace_from_the_prediction_to_the_request(monitor, spans):
    handle = handler(monitor.database, {"trips": monitor.pipeline}, wake=lambda: None)
    first = monitor.rows
    with span("a request for predictions"):
        asked = trace_headers()["traceparent"].split("-")[1]
        batch = monitor.make_batch(first, 200, score=0.5, x=0.9)
        _, value, headers = encode(new_event("test", "trips", batch))
    event = decode(value, headers)
    with span("handle PredictionsLogged", event.trace):
        handle(event)
    monitor.rows += 200
    monitor.label(0, 200)
    (requested,), drifted = monitor.sent(RetrainRequested), monitor.sent(DriftDetected)
    for one in (requested, *drifted):
        assert one.trace["traceparent"].split("-")[1] == asked
    with span("handle RetrainRequested", requested.trace):
        pass
    ended = spans.get_finished_spans()
    mine = {s.name for s in ended if f"{s.context.trace_id:032x}" == asked}
    assert mine == {
        "a request for predictions",
        "handle PredictionsLogged",
        "evaluate chunk",
        "handle RetrainRequested",
    }
