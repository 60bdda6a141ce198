"""A replica's metrics on their way to the service process, where those of all replicas are scraped."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Mapping
from urllib.parse import quote

from prometheus_client import REGISTRY, CollectorRegistry, generate_latest

__all__ = ["MetricsPush"]

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 2.0


class MetricsPush:
    """Puts them to `host:port` every so many seconds, as to a Pushgateway of Prometheus."""

    def __init__(
        self,
        address: str,
        seconds: float,
        labels: Mapping[str, str],
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Takes where they go, how often, the labels that they get there, and where they are."""
        self._address = address
        self._seconds = seconds
        pairs = (f"/{name}/{quote(value, safe='')}" for name, value in labels.items())
        self._path = "/metrics/job/inference" + "".join(pairs)
        self._registry = registry
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._arrives = True

    def start(self) -> None:
        """Begins to push, if that is wanted at all."""
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        """Pushes once more: the totals of a replica that ends are seen until they are old."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(2 * TIMEOUT_SECONDS)

    def _run(self) -> None:
        self._push()
        while not self._stopping.wait(self._seconds):
            self._push()
        self._push()

    def _push(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("PUT", self._path, generate_latest(self._registry))
            answer = connection.getresponse()
            answer.read()
            failure = "" if answer.status < 300 else f"status {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            failure = str(error)
        finally:
            connection.close()
        if failure and self._arrives:
            log.warning("metrics do not reach %s: %s", self._address, failure)
        self._arrives = not failure
