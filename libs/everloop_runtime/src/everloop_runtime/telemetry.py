"""Logs and traces: one line per log record with the trace id in it, W3C trace context across gRPC and Kafka.

Spans go by OTLP (HTTP, Protobuf) where `OTEL_EXPORTER_OTLP_ENDPOINT` says; the other variables of OpenTelemetry's
specification hold as well (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, …): the SDK reads them by itself.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime

from opentelemetry import trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

__all__ = ["configure", "span", "trace_headers"]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROPAGATOR = TraceContextTextMapPropagator()
# What every LogRecord has by itself; anything else came with `extra=`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        context = trace.get_current_span().get_span_context()
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "trace_id": f"{context.trace_id:032x}" if context.is_valid else "",
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(service: str, level: str = "INFO") -> None:
    """Sets up logging to stderr as JSON lines, and the tracer; called once, at start."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("kafka", "botocore", "urllib3", "alembic", "aiobotocore", "mlflow"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        resource = Resource.create({SERVICE_NAME: f"everloop-{service.replace('_', '-')}"})
        provider = TracerProvider(resource=resource)
        if any(os.environ.get(name) for name in _ENDPOINTS):
            # Importing it takes a moment, and most do not ask for it.
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            # In the background and bounded; the provider sends the rest when the process ends.
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)


@contextmanager
def span(
    name: str,
    headers: Mapping[str, str] | None = None,
    *,
    kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    attributes: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Runs a block inside a span; its parent is the trace context in `headers`, or the current span."""
    parent = _PROPAGATOR.extract(dict(headers)) if headers is not None else None
    with trace.get_tracer("everloop").start_as_current_span(
        name, context=parent, kind=kind, attributes=attributes
    ):
        yield


def trace_headers() -> dict[str, str]:
    """The current trace context as headers (`traceparent`); empty outside a span."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers
