"""The registry gateway over gRPC."""

from __future__ import annotations

from collections.abc import Sequence

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.domain import Wanted
from everloop_runtime.clients import call, channel

__all__ = ["GrpcRegistry"]


class GrpcRegistry:
    """Asks the gateway what is in Production."""

    def __init__(self, address: str, timeout_seconds: float) -> None:
        """Takes `host:port` and the time that an answer may take."""
        self._timeout = timeout_seconds
        self._channel = channel(address)
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)

    def production(self) -> Sequence[Wanted]:
        """See `ports.Registry`."""
        request = registry_pb2.ListProductionRequest()
        answer = call(self._stub.ListProduction, request, timeout=self._timeout)
        return [
            Wanted(item.model, item.version, item.run_id, item.onnx_sha256)
            for item in answer.versions
        ]

    def close(self) -> None:
        """Closes the channel."""
        self._channel.close()
