"""Prometheus metrics of the registry gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = [
    "ALIAS_CHANGES",
    "ARTIFACTS_CHANGED",
    "ARTIFACTS_SERVED",
    "PROMOTIONS",
    "ROLLOUT_DECISIONS",
    "VERDICTS",
    "WEBHOOKS",
    "RolloutsByState",
    "VersionsByStage",
]

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

ARTIFACTS_CHANGED = Counter(
    "everloop_registry_artifacts_changed",
    "Times that a model's files were not those that the training announced, or that were registered.",
    ["model"],
)
ARTIFACTS_SERVED = Counter(
    "everloop_registry_artifacts_served",
    "Times that replicas asked for the files of a version, by where they came from: cache, mlflow.",
    ["model", "source"],
)
WEBHOOKS = Counter(
    "everloop_registry_webhooks",
    "Attempts to tell a receiver what was done to a model: delivered, failed (tried again), given_up.",
    ["model", "outcome"],
)
ROLLOUT_DECISIONS = Counter(
    "everloop_registry_rollout_decisions",
    "Rollouts that ended, by what ended them: baked, errors, latency, failure, performance, person, superseded, "
    "overtaken, gone.",
    ["model", "outcome", "cause"],
)


class _Counted(Collector):
    """Numbers by model and one more label, counted in the database when they are asked for."""

    name: str
    about: str
    label: str

    def __init__(self, count: Callable[[], Mapping[tuple[str, str], int]]) -> None:
        """Takes what counts: (model, label) to number."""
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
        return GaugeMetricFamily(self.name, self.about, labels=["model", self.label])


class VersionsByStage(_Counted):
    """Number of versions per model and stage."""

    name, about, label = "everloop_registry_model_versions", "Versions by stage.", "stage"


class RolloutsByState(_Counted):
    """Number of rollouts per model and state."""

    name, about, label = "everloop_registry_rollouts", "Rollouts by state.", "state"
