"""The metrics of all replicas in one place: they push them here, one scrape shows them beside this process's own.

Part of the service process; a program of its own where there is none, as in a pod whose replicas KubeRay deploys.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, Final, NamedTuple

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from everloop_inference.settings import InferenceSettings
from everloop_runtime import telemetry
from everloop_runtime.metrics import MetricsServer
from everloop_runtime.service import run

__all__ = ["MetricsGateway", "metrics_server"]

log = logging.getLogger(__name__)

Labels = tuple[tuple[str, str], ...]

KEPT_PUSHES = 3
"""Pushes that a replica may miss before its metrics are gone."""
_PREFIX: Final = "/metrics/job/inference/"
_LABELS: Final = ("replica", "pool")


class _Pushed(NamedTuple):
    at: float
    text: str


class MetricsGateway(Collector):
    """A WSGI application: `PUT` takes what a replica pushes, `GET` shows everything that is not too old.

    The path is that of a Pushgateway, `/metrics/job/inference/replica/<name>[/pool/<model>]`; what follows the job are
    labels, which every series of that replica gets.
    """

    def __init__(
        self,
        keep_seconds: float,
        max_bytes: int,
        own: CollectorRegistry = REGISTRY,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes how long a push is shown, how much may be held, and what else is shown."""
        self._keep = keep_seconds
        self._max_bytes = max_bytes
        self._own = own
        self._clock = clock
        self._lock = threading.Lock()
        self._pushed: dict[Labels, _Pushed] = {}
        everything = CollectorRegistry()
        everything.register(self)
        self._show = make_wsgi_app(everything)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answers a request."""
        if environ["REQUEST_METHOD"] != "PUT":
            return self._show(environ, start_response)  # type: ignore[no-any-return]
        status = self._put(environ)
        start_response(status, [("content-length", "0")])
        return []

    def _put(self, environ: dict[str, Any]) -> str:
        labels = _labels(environ["PATH_INFO"])
        if labels is None:
            return "404 Not Found"
        try:
            length = int(environ["CONTENT_LENGTH"])
        except (KeyError, ValueError):
            return "411 Length Required"
        if length < 0:  # would be read until the connection ends
            return "411 Length Required"
        with self._lock:
            self._forget_old()
            others = sum(len(one.text) for name, one in self._pushed.items() if name != labels)
        if others + length > self._max_bytes:
            log.error("a replica's metrics find no room: %d bytes are held already", others)
            return "413 Content Too Large"
        try:
            text = environ["wsgi.input"].read(length).decode()
            for _ in text_string_to_metric_families(text):
                pass
        except ValueError as error:
            log.warning("what %s pushes is no metrics: %s", labels, error)
            return "400 Bad Request"
        with self._lock:
            self._pushed[labels] = _Pushed(self._clock(), text)
        return "200 OK"

    def collect(self) -> Iterator[Metric]:
        """Gives everything, each family once."""
        families = {family.name: _copied(family) for family in self._own.collect()}
        with self._lock:
            self._forget_old()
            pushed = dict(self._pushed)
        for labels, one in pushed.items():
            for family in text_string_to_metric_families(one.text):
                samples = (s._replace(labels={**s.labels, **dict(labels)}) for s in family.samples)
                families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type)
                ).samples.extend(samples)
        yield from families.values()
        count = "Replicas whose metrics are shown here, those of pools included."
        yield GaugeMetricFamily("everloop_inference_replicas", count, len(pushed))

    def _forget_old(self) -> None:
        oldest = self._clock() - self._keep
        self._pushed = {name: one for name, one in self._pushed.items() if one.at >= oldest}


def _copied(family: Metric) -> Metric:
    """A family that may grow: some collectors hand the same one out with every scrape."""
    copied = copy(family)
    copied.samples = list(family.samples)
    return copied


def _labels(path: str) -> Labels | None:
    """The labels that a path gives; None where it is not one of ours."""
    parts = path.removeprefix(_PREFIX).split("/")
    pairs = tuple(zip(parts[::2], parts[1::2], strict=False))
    names = tuple(name for name, _ in pairs)
    is_ours = path.startswith(_PREFIX) and len(parts) % 2 == 0 and names == _LABELS[: len(names)]
    return pairs if is_ours else None


def metrics_server(settings: InferenceSettings) -> MetricsServer:
    """What listens for scrapes and pushes."""
    gateway = MetricsGateway(
        KEPT_PUSHES * settings.metrics_push_seconds, settings.metrics_push_max_bytes
    )
    return MetricsServer(settings.metrics_address, gateway)


def main() -> int:
    """Shows what replicas push until it is told to stop; returns the exit status."""
    settings = InferenceSettings.load()
    telemetry.configure("inference-metrics", settings.log_level)
    return run([metrics_server(settings)])


if __name__ == "__main__":
    sys.exit(main())
