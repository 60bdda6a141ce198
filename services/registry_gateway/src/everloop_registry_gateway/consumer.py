"""Kafka in: trained models, and what the monitor says about versions on trial."""

from __future__ import annotations

from collections.abc import Callable

from everloop_contracts.stubs.everloop.monitoring.v1 import events_pb2 as monitoring_events_pb2
from everloop_contracts.stubs.everloop.monitoring.v1 import monitoring_pb2
from everloop_contracts.stubs.everloop.training.v1 import events_pb2
from everloop_registry_gateway.convert import candidate_of
from everloop_registry_gateway.observe import Observer
from everloop_registry_gateway.register import Registrar
from everloop_runtime.events import Event

__all__ = ["on_drift", "on_training"]


def on_training(registrar: Registrar) -> Callable[[Event], None]:
    """Returns the handler of `everloop.trainings`; a failed training is none of the registry's business."""

    def handle(event: Event) -> None:
        if isinstance(event.data, events_pb2.ModelTrained):
            registrar.register(candidate_of(event, event.data))

    return handle


def on_drift(observer: Observer) -> Callable[[Event], None]:
    """Returns the handler of `everloop.drift`: a bad performance matters here, drift alone and requests do not."""

    def handle(event: Event) -> None:
        if not isinstance(event.data, monitoring_events_pb2.DriftDetected):
            return
        chunk = event.data.chunk
        bad = [
            f"{kind} {_told(measurement)}"
            for kind, measurement in (
                ("estimated", chunk.estimated_performance),
                ("realised", chunk.realised_performance),
            )
            if measurement.alert
        ]
        if bad:
            measured = f"{', '.join(bad)} in chunk {chunk.id}"
            observer.alert(event.id, chunk.pipeline, chunk.model_version, measured)

    return handle


def _told(measurement: monitoring_pb2.Measurement) -> str:
    bounds = [
        f"{sign} {getattr(measurement, bound):.4g}"
        for bound, sign in (("lower", "<"), ("upper", ">"))
        if measurement.HasField(bound)  # type: ignore[arg-type]
    ]
    return " ".join([measurement.measure, f"{measurement.value:.4g}", *bounds])
