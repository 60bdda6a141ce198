"""The services, by the names that their folders have."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Service"]


class Service(StrEnum):
    """A service; callers are let into some of them."""

    INGEST = "ingest"
    TRAINER = "trainer"
    REGISTRY_GATEWAY = "registry_gateway"
    INFERENCE = "inference"
    MONITOR = "monitor"
