"""Addresses that the replicas of a node share."""

from __future__ import annotations

import socket

__all__ = ["accepted", "bound"]


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


def accepted(listening: socket.socket) -> list[socket.socket]:
    """The connections that wait at a socket that is about to be closed.

    The kernel gave them to this one of those that share the address, and resets them when it is closed.
    """
    listening.setblocking(False)
    found: list[socket.socket] = []
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:
            return found
        connection.setblocking(False)
        found.append(connection)
