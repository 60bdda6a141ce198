"""The registry gateway over gRPC."""

from __future__ import annotations

from typing import Final

from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.domain import ArmStats, Production, Strategy, Trial, Wanted
from everloop_inference.ports import Report
from everloop_runtime.clients import call, channel

__all__ = ["GrpcRegistry"]

_STRATEGIES: Final = {
    registry_pb2.ROLLOUT_STRATEGY_CANARY: Strategy.CANARY,
    registry_pb2.ROLLOUT_STRATEGY_SHADOW: Strategy.SHADOW,
    registry_pb2.ROLLOUT_STRATEGY_AB: Strategy.AB,
}


class GrpcRegistry:
    """Asks the gateway what is in Production and on trial, and reports to it."""

    def __init__(self, address: str, timeout_seconds: float) -> None:
        """Takes `host:port` and the time that an answer may take."""
        self._timeout = timeout_seconds
        self._channel = channel(address)
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)

    def production(self) -> Production:
        """See `ports.Registry`."""
        request = registry_pb2.ListProductionRequest()
        answer = call(self._stub.ListProduction, request, timeout=self._timeout)
        # A strategy that this replica does not know is none that it could follow.
        known = [item for item in answer.trials if item.rollout.plan.strategy in _STRATEGIES]
        return Production([_wanted(item) for item in answer.versions], [_trial(i) for i in known])

    def report(self, report: Report) -> bool:
        """See `ports.Registry`."""
        request = registry_pb2.ReportRolloutRequest(
            id=report.rollout,
            replica=report.replica,
            sequence=report.sequence,
            candidate=_stats(report.candidate),
            baseline=_stats(report.baseline),
            failure=report.failure,
        )
        answer = call(self._stub.ReportRollout, request, timeout=self._timeout)
        return answer.state == registry_pb2.ROLLOUT_STATE_RUNNING

    def close(self) -> None:
        """See `ports.Registry`."""
        self._channel.close()


def _wanted(item: registry_pb2.ModelVersion) -> Wanted:
    return Wanted(item.model, item.version, item.run_id, item.onnx_sha256)


def _trial(item: registry_pb2.Trial) -> Trial:
    rollout = item.rollout
    return Trial(
        rollout.id,
        _wanted(item.version),
        rollout.baseline_version,
        _STRATEGIES[rollout.plan.strategy],
        rollout.plan.percent,
        rollout.plan.key,
    )


def _stats(stats: ArmStats) -> registry_pb2.ArmStats:
    return registry_pb2.ArmStats(
        requests=stats.requests,
        errors=stats.errors,
        rows=stats.rows,
        latency_counts=stats.latency_counts,
    )
