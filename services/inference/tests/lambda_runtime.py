"""A stand-in of the API by which AWS Lambda runs a function: events out, answers in, one at a time."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

RUNTIME = "/2018-06-01/runtime"
"""https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html"""


class LambdaRuntime:
    """Hands events to the function that asks, and takes what it answers.

    Attributes:
        address: what `AWS_LAMBDA_RUNTIME_API` must be.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.said: queue.Queue[tuple[str, Any]] = queue.Queue()

    def invoke(self, event: dict[str, Any]) -> Any:
        """What the function answers."""
        self.events.put(event)
        kind, answer = self.said.get(timeout=120)
        assert kind == "response", answer
        return answer

    def request(self, method: str, path: str, body: str | None = None, **more: Any) -> Any:
        """What it answers to a request over HTTP, as an HTTP API or a function URL puts it (payload format 2.0)."""
        return self.invoke(
            {
                "version": "2.0",
                "routeKey": "$default",
                "rawPath": path,
                "rawQueryString": "",
                "headers": {"content-type": "application/json", "host": "x.lambda-url.aws"},
                "requestContext": {
                    "http": {
                        "method": method,
                        "path": path,
                        "protocol": "HTTP/1.1",
                        "sourceIp": "192.0.2.1",
                    },
                    "requestId": "r",
                    "stage": "$default",
                },
                "isBase64Encoded": False,
                **({} if body is None else {"body": body}),
                **more,
            }
        )


@contextmanager
def lambda_runtime() -> Iterator[LambdaRuntime]:
    """Serves the API on a free port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == f"{RUNTIME}/invocation/next"
            event = runtime.events.get()
            if event is None:  # the end of the test
                self.close_connection = True
                return
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", "8476a536")
            self.send_header("Lambda-Runtime-Deadline-Ms", str(int(time.time() * 1000) + 30_000))
            self.send_header(
                "Lambda-Runtime-Invoked-Function-Arn",
                "arn:aws:lambda:eu-central-1:1:function:flights",
            )
            self._finish(json.dumps(event).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kind = self.path.removeprefix(f"{RUNTIME}/").replace("invocation/8476a536/", "")
            runtime.said.put((kind, json.loads(body)))
            self.send_response(202)
            self._finish(b"{}")

        def _finish(self, body: bytes) -> None:
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        runtime = LambdaRuntime("{}:{}".format(*server.server_address))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield runtime
        finally:
            runtime.events.put(None)
            server.shutdown()
            thread.join()
