"""The `/metrics` endpoint of a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prometheus_client import start_http_server

from everloop_runtime.service import Component, Stopper

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["MetricsServer"]


SILENCE: Final = 10.0
"""Seconds after which a caller that says nothing is cut off: each has a thread."""


class MetricsServer(Component):
    """Serves Prometheus metrics over HTTP."""

    name = "metrics server"

    def __init__(self, address: str, app: WSGIApplication | None = None) -> None:
        """Takes `host:port`, and what answers there if it is more than this process's own metrics."""
        self._app = app
        self._host, _, port = address.rpartition(":")
        self._port = int(port)

    def start(self, stopper: Stopper) -> None:
        """Binds and serves from a thread of its own."""
        self._server, self._thread = start_http_server(self._port, addr=self._host)
        handler: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("Handler", (handler,), {"timeout": SILENCE})
        if self._app:
            self._server.set_app(self._app)

    def stop(self) -> None:
        """Closes the listener."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
