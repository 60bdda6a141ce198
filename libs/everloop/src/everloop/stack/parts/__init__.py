"""The parts of the embedded stack, in order of dependence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import Part
from everloop.stack.parts import kafka, mlflow, prometheus, ray, s3, services

__all__ = ["INFRA", "SERVICES", "Catalog", "build"]

INFRA = ("kafka", "s3", "mlflow", "ray")
SERVICES = ("ingest", "registry_gateway", "trainer", "inference", "monitor")

Catalog = Callable[[Home, Endpoints], Sequence[Part]]
"""Describes the parts of a stack; `build` is the real one, tests have their own."""


def build(home: Home, endpoints: Endpoints) -> list[Part]:
    """Describe every part of a stack with these endpoints; nothing is started."""
    infra = [s3.part(home, endpoints), mlflow.part(home, endpoints), ray.part(home, endpoints)]
    if endpoints.kafka_is_ours:
        infra.insert(0, kafka.part(home, endpoints))
    # A stack that was planned before there was one has no port for it.
    watched = prometheus.installed() and "prometheus" in endpoints.ports
    watching = [prometheus.part(home, endpoints)] if watched else []
    return [*infra, *services.parts(home, endpoints), *watching]
