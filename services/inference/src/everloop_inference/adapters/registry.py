"""The registry gateway over gRPC."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from everloop_contracts.artifacts import TooLarge, write_files
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_inference.domain import ArmStats, Production, Strategy, Trial, Wanted
from everloop_inference.ports import Report
from everloop_runtime.clients import call, channel, stream
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["GrpcRegistry"]

_STRATEGIES: Final = {
    registry_pb2.ROLLOUT_STRATEGY_CANARY: Strategy.CANARY,
    registry_pb2.ROLLOUT_STRATEGY_SHADOW: Strategy.SHADOW,
    registry_pb2.ROLLOUT_STRATEGY_AB: Strategy.AB,
}
BUSY_SECONDS: Final = 0.4
"""Longest pause after which a gateway that hands out files to enough others is asked again."""
WATCH_SECONDS: Final = 300.0
"""Time after which a stream of changes is asked for anew: a connection may be gone without a word."""
_LASTING: Final = frozenset({Kind.NOT_FOUND, Kind.PRECONDITION})


class GrpcRegistry:
    """Asks the gateway what is in Production and on trial, takes the files of versions from it, and reports to it."""

    def __init__(
        self,
        address: str,
        timeout_seconds: float,
        token: str,
        download_seconds: float = 120.0,
        most_bytes: int = 2 * 1024**3,
    ) -> None:
        """Takes `host:port`, the time that an answer and a download may take, and the bytes that a version may have.

        Every call shows the token, where there is one.
        """
        self._timeout = timeout_seconds
        self._download_seconds = download_seconds
        self._most_bytes = most_bytes
        self._channel = channel(address, token)
        self._stub = registry_pb2_grpc.RegistryServiceStub(self._channel)

    def production(self) -> Production:
        """See `ports.Registry`."""
        request = registry_pb2.ListProductionRequest()
        answer = call(self._stub.ListProduction, request, timeout=self._timeout)
        # A strategy that this replica does not know is none that it could follow.
        known = [item for item in answer.trials if item.rollout.plan.strategy in _STRATEGIES]
        return Production([_wanted(item) for item in answer.versions], [_trial(i) for i in known])

    def changes(self) -> Iterator[None]:
        """See `ports.Registry`."""
        request = registry_pb2.WatchProductionRequest()
        with contextlib.closing(
            stream(self._stub.WatchProduction, request, timeout=WATCH_SECONDS)
        ) as answers:
            for _ in answers:
                yield

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

    def download(self, wanted: Wanted, folder: Path) -> None:
        """See `ports.Artifacts`."""
        request = registry_pb2.GetArtifactsRequest(model=wanted.model, version=wanted.version)
        deadline = time.monotonic() + self._download_seconds
        while True:
            try:
                return self._receive(request, folder, deadline - time.monotonic())
            except EverloopError as error:
                if error.kind in _LASTING:
                    raise
                # A gateway that is of before this method, or fails in another way, says nothing about the version.
                if error.kind is not Kind.EXHAUSTED or time.monotonic() + BUSY_SECONDS > deadline:
                    raise EverloopError(
                        Kind.UNAVAILABLE,
                        "ARTIFACT_UNAVAILABLE",
                        f"the files of {wanted.model} version {wanted.version}: {error}",
                        model=wanted.model,
                    ) from error
            time.sleep(random.uniform(BUSY_SECONDS / 4, BUSY_SECONDS))

    def _receive(
        self, request: registry_pb2.GetArtifactsRequest, folder: Path, seconds: float
    ) -> None:
        with contextlib.closing(stream(self._stub.GetArtifacts, request, timeout=seconds)) as parts:
            try:
                write_files(parts, folder, self._most_bytes)
            except TooLarge as error:
                raise EverloopError(
                    Kind.PRECONDITION,
                    "ARTIFACT_TOO_LARGE",
                    f"the files of {request.model} version {request.version} are {error}: raise "
                    "EVERLOOP_ARTIFACT_CACHE_BYTES",
                    model=request.model,
                ) from error
            except ValueError as error:
                raise EverloopError(
                    Kind.INTERNAL, "BAD_PATH", f"the gateway names a file: {error}"
                ) from error

    def close(self) -> None:
        """See `ports.Registry`."""
        self._channel.close()


def _wanted(item: registry_pb2.ModelVersion) -> Wanted:
    return Wanted(item.model, item.version, item.run_id, item.onnx_sha256, item.artifact_sha256)


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
