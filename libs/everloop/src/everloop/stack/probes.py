"""Health checks, each over the protocol that the part's clients speak."""

from __future__ import annotations

import http.client
import socket
import struct
from typing import Any

from everloop.stack.part import NotReady

__all__ = ["grpc_serving", "http_ok", "kafka_answers", "listens"]

_TIMEOUT_SECONDS = 2.0


def listens(address: str) -> None:
    """Check that something accepts connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), _TIMEOUT_SECONDS).close()
    except OSError as error:
        raise NotReady(f"nothing answers at {address} ({error.strerror or error})") from None


def http_ok(address: str, path: str) -> None:
    """Check that `GET path` is answered with 200."""
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("GET", path)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"http://{address}{path} does not answer ({error})") from None
    finally:
        connection.close()
    if status != http.client.OK:
        raise NotReady(f"http://{address}{path} answers {status}")


def kafka_answers(bootstrap: str) -> None:
    """Check that one of the bootstrap servers answers ApiVersions, the first request of every Kafka client."""
    header = struct.pack(">hhih8s", 18, 0, 1, 8, b"everloop")
    seen = "no server is named"
    for address in bootstrap.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host, int(port)), _TIMEOUT_SECONDS) as connection:
                connection.sendall(struct.pack(">i", len(header)) + header)
                answer = connection.recv(10, socket.MSG_WAITALL)
        except OSError as error:
            seen = f"{address} does not answer ({error.strerror or error})"
            continue
        if len(answer) == 10 and struct.unpack(">iih", answer)[1:] == (1, 0):
            return
        seen = f"{address} does not speak Kafka"
    raise NotReady(seen)


def grpc_serving(address: str) -> None:
    """Check that the `grpc.health.v1` service of a server says SERVING for the server as a whole."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            raise NotReady(f"gRPC health at {address}: {error.code().name}") from None
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise NotReady(f"gRPC health at {address}: {name}")
