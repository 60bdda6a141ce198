"""A gRPC server for one event loop, on a native HTTP/2 engine."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import ngh2

from everloop_inference.addresses import accepted, bound
from everloop_inference.rpc.connection import Connection
from everloop_inference.rpc.limits import METADATA_EXCESS, Limits
from everloop_inference.rpc.methods import Methods

__all__ = ["NativeServer", "RpcServer"]

log = logging.getLogger(__name__)

_BACKLOG = 1024
_CHECK_SECONDS = 1.0
_BURST_SECONDS = 5


class RpcServer(Protocol):
    """What both servers can do."""

    async def start(self, address: str) -> None:
        """Listens on `host:port`, beside others that do so.

        Raises:
            OSError: the address cannot be bound.
        """

    async def stop(self, seconds: float) -> None:
        """Takes no new calls, lets those that run finish within so many seconds, and closes every connection."""


class NativeServer:
    """HTTP/2 without TLS by prior knowledge; unary methods that are plain functions are answered at once.

    Attributes:
        calls: calls that the server holds.
        received: bytes of incomplete and unread messages, over all connections.
        unsent: bytes of answers that callers do not take, over all connections.
    """

    def __init__(
        self,
        methods: Methods,
        limits: Limits,
        closed: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Listens to nothing yet.

        Args:
            methods: what is answered.
            limits: what is allowed.
            closed: told the reason whenever a connection is closed that its caller did not close.
        """
        self.loop = asyncio.get_running_loop()
        self.methods = methods.by_path()
        self.limits = limits
        self.closed = closed
        self.calls = 0
        self.received = 0
        self.unsent = 0
        # The engine closes the connection of a caller that disregards the announced limit by far.
        self.configuration = ngh2.Configuration(
            auto_window_update=False,
            stream_reset_rate_limit=(
                _BURST_SECONDS * limits.cancelled_calls,
                limits.cancelled_calls,
            ),
            max_inbound_header_list_size=METADATA_EXCESS * limits.metadata_bytes,
        )
        self.settings = {
            ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.streams,
            ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.metadata_bytes,
        }
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._listener: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    async def start(self, address: str) -> None:
        """See `RpcServer`."""
        self._socket = bound(address)
        self._listener = await self.loop.create_server(
            lambda: Connection(self), sock=self._socket, backlog=_BACKLOG
        )
        self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)

    async def stop(self, seconds: float) -> None:
        """See `RpcServer`."""
        if self._listener is not None and self._socket is not None:
            late = accepted(self._socket)
            self._listener.close()
            for waiting in late:
                await self.loop.connect_accepted_socket(lambda: Connection(self), waiting)
        for connection in tuple(self._connections):
            connection.drain()
        await self._gone(seconds)
        for connection in tuple(self._connections):
            connection.end()
        await self._gone(_CHECK_SECONDS)
        for connection in tuple(self._connections):
            connection.kill()
        if self._timer is not None:
            self._timer.cancel()
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CHECK_SECONDS)

    async def _gone(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return

    # What connections ask of it.

    @property
    def full(self) -> bool:
        """True while no more calls are taken."""
        return self.calls >= self.limits.concurrent_calls or self.pressed

    @property
    def pressed(self) -> bool:
        """True while callers leave more answers lying than the server may hold."""
        return self.unsent > self.limits.unsent_bytes

    def admit(self, connection: Connection) -> bool:
        """Takes a new connection, if there is room."""
        if len(self._connections) >= self.limits.connections:
            self.closed("connections")
            return False
        self._connections.add(connection)
        self._idle.clear()
        return True

    def lost(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)
        if not self._connections:
            self._idle.set()

    def run(self, work: Awaitable[Any]) -> asyncio.Future[Any]:
        """Runs what a handler has not finished at once."""
        task = asyncio.ensure_future(work, loop=self.loop)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check(self) -> None:
        self._timer = self.loop.call_later(_CHECK_SECONDS, self._check)
        now = self.loop.time()
        for connection in tuple(self._connections):
            try:
                connection.check(now)
            except Exception:
                log.exception("a connection failed")
                connection.kill()
