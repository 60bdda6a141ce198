"""Kafka in: trained models."""

from __future__ import annotations

from collections.abc import Callable

from everloop_contracts.stubs.everloop.training.v1 import events_pb2
from everloop_registry_gateway.convert import candidate_of
from everloop_registry_gateway.register import Registrar
from everloop_runtime.events import Event

__all__ = ["on_training"]


def on_training(registrar: Registrar) -> Callable[[Event], None]:
    """Returns the handler of `everloop.trainings`; a failed training is none of the registry's business."""

    def handle(event: Event) -> None:
        if isinstance(event.data, events_pb2.ModelTrained):
            registrar.register(candidate_of(event, event.data))

    return handle
