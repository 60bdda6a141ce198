"""Addresses that the replicas of a node share."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import socket
import struct
import sys
from typing import Final

__all__ = ["accepted", "bound", "must_be_free"]

_SO_ATTACH_FILTER: Final = 26
_DROP_ALL: Final = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A program of the kernel's packet filter: return 0, which keeps no byte of a packet."""


def bound(address: str) -> socket.socket:
    """A socket at `host:port`, beside others of this user; the kernel spreads the connections.

    Raises:
        OSError: the address cannot be bound.
    """
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((host.strip("[]"), int(port)))
    except OSError:
        listening.close()
        raise
    return listening


def must_be_free(address: str) -> None:
    """For one that shares its address with nobody: a socket that is `bound` would take requests of others unseen.

    Raises:
        RuntimeError: another process listens at `host:port`, or it cannot be bound.
    """
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as alone:
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has closed may linger
        try:
            alone.bind((host.strip("[]"), int(port)))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise RuntimeError(f"{address} cannot be bound: {error}") from error
            raise RuntimeError(f"{address} is taken by another process") from error


def accepted(listening: socket.socket) -> list[socket.socket]:
    """The connections that wait at a socket that is about to be closed.

    The kernel gave them to this one of those that share the address, and resets them when it is closed. Whoever
    connects from here on is not heard: its next try, a second later, finds another one.
    """
    _deafen(listening)
    listening.setblocking(False)
    found: list[socket.socket] = []
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return found
        connection.setblocking(False)
        found.append(connection)


def _deafen(listening: socket.socket) -> None:
    """Lets a socket hear of no new connection; those that wait at it stay. Elsewhere than on Linux it hears on."""
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
        # Where it is refused, who connects before the door is closed is reset.
        with contextlib.suppress(OSError):
            listening.setsockopt(
                socket.SOL_SOCKET,
                _SO_ATTACH_FILTER,
                struct.pack("HL", 1, ctypes.addressof(program)),
            )
