"""Asks a service for its health: `python -m everloop_runtime.health 127.0.0.1:15051` ends with 0 where it serves.

What a container engine runs inside the container; Kubernetes asks by itself.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from everloop_contracts.grpc_client import channel

__all__ = ["main"]

SECONDS = 4.0
"""Less than what the images' `HEALTHCHECK` waits, so that the reason is said."""


def main() -> int:
    """Prints what was answered; returns the exit status."""
    (address,) = sys.argv[1:]
    with channel(address) as connection:
        stub: Any = health_pb2_grpc.HealthStub(connection)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError as error:
            print(error, file=sys.stderr)
            return 1
    print(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
    return int(answer.status != health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(main())
