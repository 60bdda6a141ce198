"""One model by itself as an AWS Lambda function: events of HTTP APIs and function URLs in, the same answers out.

The function's handler is `everloop_inference.aws_lambda.handler`. It is made when it is asked for, which Lambda does
before the first event: a model that cannot serve fails the function's start, and no event waits for loading.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from functools import cache
from typing import Any

from mangum import Mangum

from everloop_inference.packaged import assemble
from everloop_inference.ports import HttpRequest
from everloop_inference.replica import Replica
from everloop_inference.settings import PackagedSettings
from everloop_runtime import telemetry
from everloop_runtime.service import Stopper

__all__ = ["make_handler"]

Handler = Callable[[dict[str, Any], Any], dict[str, Any]]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def __getattr__(name: str) -> Handler:
    if name == "handler":
        return make_handler()
    raise AttributeError(name)


@cache
def make_handler() -> Handler:
    """Loads the model of `EVERLOOP_MODEL_DIR`, and returns what answers events; they come one at a time.

    Predictions are not logged: Lambda stops a process between two events, and with it what sends the log.

    Raises:
        OSError, ValueError, TypeError: the folder holds no package.
        RuntimeError: the model cannot serve, as the log says; or a file of callers is named: IAM says who may call a
            function, by the header that a token would have to be in.
    """
    settings = PackagedSettings.load().model_copy(update={"kafka_bootstrap": ""})
    if settings.callers_file:
        raise RuntimeError("EVERLOOP_CALLERS_FILE: IAM says who may call a function")
    telemetry.configure("inference", settings.log_level)
    replica, server = assemble(settings, listens=False)
    server.start(Stopper())
    handler: Handler = Mangum(_application(replica), lifespan="off")
    return handler


def _application(replica: Replica) -> Callable[..., Coroutine[Any, Any, None]]:
    """The door of the replica as an ASGI application."""

    async def application(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        headers = tuple((name, value) for name, value in scope["headers"])
        reply = await replica.http(HttpRequest(scope["method"], scope["path"], headers, body))
        head = {"type": "http.response.start", "status": reply.status, "headers": reply.headers}
        await send(head)
        await send({"type": "http.response.body", "body": reply.body})

    return application
