"""Keeps the data plane up: deploys, looks, and deploys again when nobody answers."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from everloop_inference.placement.metrics import DEPLOYS, UP
from everloop_runtime.service import Component, Stopper

__all__ = ["DataPlane", "answering", "listens"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


def answering(address: str) -> str | None:
    """Returns the fingerprint of the replica that answers at `host:port`; None if none does."""
    connection = http.client.HTTPConnection(address, timeout=LOOK_SECONDS)
    try:
        connection.request("GET", "/v2")
        answer = json.loads(connection.getresponse().read())
        return str(answer["fingerprint"])
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
        return None
    finally:
        connection.close()


def listens(address: str) -> bool:
    """Whether somebody takes connections at `host:port`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=LOOK_SECONDS).close()
    except OSError:
        return False
    return True


class DataPlane(Component):
    """Runs the deploying program at start and whenever the data plane has not answered for a while.

    Stopping it leaves the data plane alone: it goes on answering without this process, and ends with Ray.
    """

    name = "data plane"

    def __init__(
        self,
        look: Callable[[], str | None],
        head_is_up: Callable[[], bool],
        wanted: str,
        *,
        seconds: float,
        failures: int,
        deploy_seconds: float,
    ) -> None:
        """Takes how to look and which fingerprint is wanted; the limits are the settings of the same names."""
        self._look = look
        self._head_is_up = head_is_up
        self._wanted = wanted
        self._seconds = seconds
        self._failures = failures
        self._deploy_seconds = deploy_seconds
        self._command = (sys.executable, "-m", "everloop_inference.placement.deploy", wanted)
        self._up = threading.Event()
        self._answers = False

    def start(self, stopper: Stopper) -> None:
        """Returns when the wanted deployment answers, or the service is to stop."""
        self._stopper = stopper
        self._thread = stopper.thread(self.name, self._run)
        while not stopper.stopping and not self._up.wait(0.2):
            pass

    def stop(self) -> None:
        """Stops looking."""
        self._thread.join(timeout=15)

    def _run(self) -> None:
        self._note(self._look())
        # Even a data plane that answers may be in the middle of a change, or lack replicas.
        self._deploy()
        while not self._stopper.stopping:
            failures = 0
            while failures < self._failures and not self._stopper.wait(self._seconds):
                failures = 0 if self._note(self._look()) else failures + 1
            if not self._stopper.stopping:
                log.error(
                    "the data plane has not answered %d times: it is deployed again", failures
                )
                self._deploy()

    def _note(self, found: str | None) -> bool:
        up = found is not None
        if up != self._answers:
            log.log(logging.INFO if up else logging.ERROR, "data plane %s", "up" if up else "down")
        self._answers = up
        UP.set(up)
        if found == self._wanted:
            self._up.set()
        return up

    def _deploy(self) -> None:
        """Tries until it works or the service stops."""
        pause = 1.0
        while not self._stopper.stopping:
            if self._head_is_up() and self._attempt():
                DEPLOYS.labels("done").inc()
                return
            DEPLOYS.labels("failed").inc()
            self._stopper.wait(pause)
            pause = min(pause * 2, 5.0)

    def _attempt(self) -> bool:
        """Runs the program once; its log goes to ours."""
        began = time.monotonic()
        with subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=sys.stderr) as child:
            while child.poll() is None:
                self._note(self._look())
                late = time.monotonic() - began > self._deploy_seconds
                if late or not self._head_is_up() or self._stopper.wait(min(self._seconds, 0.5)):
                    child.kill()
                    child.wait()
        took = time.monotonic() - began
        if child.returncode:
            log.error("deploying failed after %.1f s, status %d", took, child.returncode)
        else:
            log.info("deployed in %.1f s", took)
        return child.returncode == 0
