"""Listeners with the model behind them and nothing else: no checks, ids, labels, log, metrics or swaps.

Usage: python bare.py own|uvicorn <http port> <grpc port>
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import orjson
import uvicorn
import uvloop

from bench.inference.peers import tensors
from bench.inference.peers.flights import Flights
from everloop_contracts.stubs.inference import grpc_service_pb2 as oip
from everloop_contracts.stubs.inference import grpc_service_pb2_grpc as oip_grpc
from everloop_inference.http.listener import HttpLimits, HttpServer
from everloop_inference.rpc import Limits, Methods, NativeServer

FLIGHTS = Flights()
HEADERS = [(b"content-type", b"application/json")]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answers rows at any path."""
    message = await receive()
    body = message["body"]
    while message.get("more_body"):
        message = await receive()
        body += message["body"]
    answer = FLIGHTS.predict(orjson.loads(body)["rows"]).tolist()
    content = orjson.dumps({"predictions": answer})
    headers = [*HEADERS, (b"content-length", b"%d" % len(content))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


class Servicer(oip_grpc.GRPCInferenceServiceServicer):
    """Answers ModelInfer, and streams of it."""

    def ModelInfer(self, request: oip.ModelInferRequest, context: Any) -> Any:
        """Answers raw contents."""
        return tensors.fill(oip.ModelInferResponse(), FLIGHTS.run(tensors.feeds(request)))

    async def stream(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        """Answers one after the other."""
        async for request in requests:
            yield self.ModelInfer(request, context)


async def main(http: str, http_port: int, grpc_port: int) -> None:
    """Serves until it is ended."""
    servicer: Any = Servicer()  # type: ignore[abstract]
    methods: Any = Methods()
    oip_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, methods)
    methods.services["inference.GRPCInferenceService"]["ModelStreamInfer"] = (
        grpc.stream_stream_rpc_method_handler(
            servicer.stream,
            oip.ModelInferRequest.FromString,
            oip.ModelInferResponse.SerializeToString,
        )
    )
    await NativeServer(methods, Limits()).start(f"127.0.0.1:{grpc_port}")
    if http == "own":
        await HttpServer(app, HttpLimits()).start(socket.create_server(("127.0.0.1", http_port)))
        await asyncio.Event().wait()
    config = uvicorn.Config(
        app,
        port=http_port,
        http="httptools",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
