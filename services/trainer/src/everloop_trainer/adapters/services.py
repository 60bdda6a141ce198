"""The other services, over gRPC."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from everloop_contracts.stubs.everloop.ingest.v1 import ingest_pb2, ingest_pb2_grpc
from everloop_contracts.stubs.everloop.registry.v1 import registry_pb2, registry_pb2_grpc
from everloop_runtime.clients import call, channel
from everloop_runtime.errors import EverloopError, Kind, waiting_mends
from everloop_trainer.domain import Dataset
from everloop_trainer.messages import dataset_of
from everloop_trainer.ports import QUARANTINED, Incumbent

__all__ = ["IngestCutter", "RegistryProduction"]

log = logging.getLogger(__name__)

CUT_SECONDS: Final = 120.0
"""Deadline of one CutVersion: it catches up with the topic first."""
ASK_SECONDS: Final = 10.0

Answer = TypeVar("Answer")


class IngestCutter:
    """Implements `Cutter`."""

    def __init__(self, address: str, retry_seconds: float, token: str) -> None:
        """Takes `host:port` of ingest, how long an ingest that is away is waited for, and what it is shown."""
        self._stub = ingest_pb2_grpc.IngestServiceStub(channel(address, token))
        self._retry_seconds = retry_seconds

    def cut(self, pipeline: str, request_id: str) -> Dataset:
        """A version with everything that has arrived."""
        request = ingest_pb2.CutVersionRequest(pipeline=pipeline, request_id=request_id)
        answer = _patiently(
            lambda: call(self._stub.CutVersion, request, timeout=CUT_SECONDS), self._retry_seconds
        )
        dataset = answer.dataset
        if dataset.state == dataset.STATE_QUARANTINED:
            raise EverloopError(
                Kind.PRECONDITION,
                QUARANTINED,
                f"{pipeline} v{dataset.version} is in quarantine: {dataset.error}",
            )
        return dataset_of(dataset)


class RegistryProduction:
    """Implements `Production`: the registry says which version serves, its artifacts come from MLflow."""

    def __init__(
        self,
        address: str,
        retry_seconds: float,
        load: Callable[[str, int], Incumbent],
        token: str,
    ) -> None:
        """Takes `host:port` of the registry gateway, its patience, what loads a run's model, and what it is shown."""
        self._stub = registry_pb2_grpc.RegistryServiceStub(channel(address, token))
        self._retry_seconds = retry_seconds
        self._load = load

    def incumbent(self, model: str) -> Incumbent | None:
        """The Production version of a model, None if nothing serves."""
        request = registry_pb2.ListProductionRequest(model=model)
        try:
            answer = _patiently(
                lambda: call(self._stub.ListProduction, request, timeout=ASK_SECONDS),
                self._retry_seconds,
            )
        except EverloopError as error:
            if error.kind is Kind.NOT_FOUND:
                return None
            raise
        for item in answer.versions:
            if item.model == model:
                return self._load(item.run_id, item.version)
        return None


def _patiently(ask: Callable[[], Answer], seconds: float) -> Answer:
    """Asks again while waiting mends it, for at most `seconds`; all questions may be repeated."""
    deadline = time.monotonic() + seconds
    pause = 0.2
    while True:
        try:
            return ask()
        except EverloopError as error:
            if not waiting_mends(error) or time.monotonic() + pause > deadline:
                raise
            log.warning("asking again in %.1f s: %s", pause, error)
        time.sleep(pause)
        pause = min(pause * 2, 3.0)
