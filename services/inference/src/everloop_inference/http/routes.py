"""Paths of the HTTP door: the one place that says what each of them is, how it is asked, and about which model."""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from typing import Final, NamedTuple

__all__ = ["Asked", "Route", "route"]

REMEMBERED: Final = 4096
"""Paths whose meaning is remembered: that of a prediction is asked for again and again."""
LONGEST: Final = 512
"""Characters of a path beyond which it is not: anybody may ask for anything."""


class Asked(Enum):
    """What a path asks for."""

    PREDICT = auto()
    EXPLAIN = auto()
    INFER = auto()
    INDEX = auto()
    LIVE = auto()
    READY = auto()
    SERVER = auto()
    LIST_NATIVE = auto()
    LIST_OIP = auto()
    DESCRIBE = auto()
    METADATA = auto()
    MODEL_READY = auto()
    OPENAPI = auto()
    METRICS = auto()
    NOTHING = auto()


_POSTED: Final = frozenset({Asked.PREDICT, Asked.EXPLAIN, Asked.INFER, Asked.INDEX})


class Route(NamedTuple):
    """What a path means.

    Attributes:
        asked: what is asked for; `NOTHING` where there is no such path.
        model: name of the model it is about; empty where it is about none.
        version: version that the caller insists on; empty for whichever serves.
    """

    asked: Asked
    model: str = ""
    version: str = ""

    @property
    def method(self) -> str:
        """The method of HTTP that it takes."""
        return "POST" if self.asked in _POSTED else "GET"

    @property
    def passed(self) -> bool:
        """Whether the pool of its model, where the model has one, answers it. Whether it is ready is known without."""
        return bool(self.model) and self.asked is not Asked.MODEL_READY


def route(path: str) -> Route:
    """Returns what a path, without host and query, means."""
    return _remembered(path) if len(path) <= LONGEST else _read(path)


def _read(path: str) -> Route:
    match path.strip("/").split("/"):
        case ["v1", "models", target] if target.endswith(":predict"):
            return Route(Asked.PREDICT, target.removesuffix(":predict"))
        case ["v1", "models", target] if target.endswith(":explain"):
            return Route(Asked.EXPLAIN, target.removesuffix(":explain"))
        case ["v2", "models", name, "infer"]:
            return Route(Asked.INFER, name)
        case ["v2", "models", name, "versions", version, "infer"]:
            return Route(Asked.INFER, name, version)
        case ["v2", "repository", "index"]:
            return Route(Asked.INDEX)
        case ["v2", "health", "live"]:
            return Route(Asked.LIVE)
        case ["v2", "health", "ready"]:
            return Route(Asked.READY)
        case ["v2"]:
            return Route(Asked.SERVER)
        case ["v1", "models"]:
            return Route(Asked.LIST_NATIVE)
        case ["v2", "models"]:
            return Route(Asked.LIST_OIP)
        case ["v1", "models", name]:
            return Route(Asked.DESCRIBE, name)
        case ["v2", "models", name]:
            return Route(Asked.METADATA, name)
        case ["v2", "models", name, "versions", version]:
            return Route(Asked.METADATA, name, version)
        case ["v2", "models", name, "ready"]:
            return Route(Asked.MODEL_READY, name)
        case ["v2", "models", name, "versions", version, "ready"]:
            return Route(Asked.MODEL_READY, name, version)
        case ["openapi.json"]:
            return Route(Asked.OPENAPI)
        case ["metrics"]:
            return Route(Asked.METRICS)
        case _:
            return Route(Asked.NOTHING)


_remembered = lru_cache(REMEMBERED)(_read)
