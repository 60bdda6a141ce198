"""Everloop for its users: client, command line, embedded stack and demo.

from everloop import Everloop

with Everloop.connect() as everloop:
    everloop.predict("flight-delays", [{"carrier": "UA", ...}])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from everloop.addresses import Addresses as Addresses
    from everloop.client import Everloop as Everloop
    from everloop.client import Prediction as Prediction
    from everloop.client import Predictions as Predictions
    from everloop.client import Pushed as Pushed
    from everloop.client import Trace as Trace
    from everloop.errors import EverloopError as EverloopError

__all__ = ["Addresses", "Everloop", "EverloopError", "Prediction", "Predictions", "Pushed", "Trace"]

_HOMES = {"Addresses": "everloop.addresses", "EverloopError": "everloop.errors"}


def __getattr__(name: str) -> Any:
    # Lazy, because `everloop --help` should not wait for gRPC.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES.get(name, "everloop.client")), name)
