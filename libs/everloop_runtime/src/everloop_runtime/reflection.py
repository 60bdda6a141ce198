"""What gRPC reflection looks names up in."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool

__all__ = ["Descriptors"]


class Descriptors:
    """The default descriptor pool, which in addition knows the file of a method.

    `ghz` and `grpcurl describe` ask for methods; protobuf's own pool finds services, messages and fields only.
    """

    def __init__(self) -> None:
        """Copies nothing: what is imported later is found too."""
        self._pool: Any = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        """The file that defines a symbol.

        Raises:
            KeyError: none does.
        """
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found = self._pool.FindServiceByName(service)
            return found.methods_by_name[method].containing_service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)
