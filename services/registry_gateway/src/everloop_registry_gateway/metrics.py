"""Prometheus metrics of the registry gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["ALIAS_CHANGES", "PROMOTIONS", "VERDICTS", "VersionsByStage"]

VERDICTS = Counter(
    "everloop_registry_gate_verdicts", "Verdicts of gates.", ["model", "gate", "verdict"]
)
PROMOTIONS = Counter(
    "everloop_registry_promotions", "Versions that went into Production.", ["model", "move"]
)
ALIAS_CHANGES = Counter(
    "everloop_registry_alias_changes",
    "Aliases that were set or taken away in MLflow.",
    ["model", "alias"],
)


class VersionsByStage(Collector):
    """Number of versions per model and stage, counted in the database when it is asked for."""

    def __init__(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Takes what counts: (model, stage) to number."""
        self._count = count

    def describe(self) -> list[Metric]:
        """Says what will be collected, without asking the database."""
        return [self._family()]

    def collect(self) -> Iterator[Metric]:
        """Counts."""
        family = self._family()
        for labels, number in self._count().items():
            family.add_metric(labels, number)
        yield family

    def _family(self) -> GaugeMetricFamily:
        return GaugeMetricFamily(
            "everloop_registry_model_versions", "Versions by stage.", labels=["model", "stage"]
        )
