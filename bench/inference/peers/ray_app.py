"""Ray Serve: a head and one replica; as it comes, or with what its users turn on for speed.

Usage: python ray_app.py <http port> <grpc port> plain|tuned
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import orjson
import ray
from ray import serve
from ray.serve.config import gRPCOptions
from starlette.requests import Request
from starlette.responses import Response

from bench.inference.peers import tensors
from bench.inference.peers.flights import Flights
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip

SERVICER = (
    "everloop_contracts.stubs.inference.grpc_service_pb2_grpc"
    ".add_GRPCInferenceServiceServicer_to_server"
)


class Plain:
    """The graph, as Ray Serve's documentation shows it."""

    def __init__(self) -> None:
        self.flights = Flights()

    async def __call__(self, request: Request) -> Any:
        """Answers rows over HTTP."""
        rows = (await request.json())["rows"]
        return {"predictions": self.flights.predict(rows).tolist()}

    async def ModelInfer(self, request: oip.ModelInferRequest) -> Any:
        """Answers raw contents over gRPC."""
        return tensors.fill(oip.ModelInferResponse(), self.flights.run(tensors.feeds(request)))


class Tuned(Plain):
    """The same without the JSON of the standard library."""

    async def __call__(self, request: Request) -> Any:
        """Answers rows over HTTP."""
        rows = orjson.loads(await request.body())["rows"]
        answer = orjson.dumps({"predictions": self.flights.predict(rows).tolist()})
        return Response(answer, media_type="application/json")


def main(http_port: int, grpc_port: int, variant: str) -> None:
    """Serves until it is ended."""
    ray.init(include_dashboard=False, num_cpus=4, log_to_driver=False)
    serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options=gRPCOptions(port=grpc_port, grpc_servicer_functions=[SERVICER]),
        logging_config={"enable_access_log": variant == "plain"},
    )
    options: dict[str, Any] = {} if variant == "plain" else {"max_ongoing_requests": 1000}
    kind = Plain if variant == "plain" else Tuned
    serve.run(serve.deployment(**options)(kind).bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
