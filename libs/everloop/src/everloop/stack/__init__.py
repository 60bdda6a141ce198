"""The embedded stack: Kafka, S3, MLflow, Ray and the five services on one machine, without a container engine.

from everloop import stack

endpoints = stack.up(on_event=print)
...
stack.down()
"""

from __future__ import annotations

from everloop.stack.endpoints import Endpoints, load
from everloop.stack.errors import PartFailed, StackError, StackInterrupted
from everloop.stack.health import PartStatus, status, wait_healthy
from everloop.stack.home import default_home
from everloop.stack.lifecycle import Event, down, kill, up
from everloop.stack.parts import INFRA, SERVICES

__all__ = [
    "INFRA",
    "SERVICES",
    "Endpoints",
    "Event",
    "PartFailed",
    "PartStatus",
    "StackError",
    "StackInterrupted",
    "default_home",
    "down",
    "kill",
    "load",
    "status",
    "up",
    "wait_healthy",
]
