"""Kills each service with -9 in the middle of its work, once in a run of the demo."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from everloop import stack
from everloop.client import Everloop
from everloop.errors import EverloopError
from everloop_contracts.stubs.everloop.training.v1 import training_pb2

PIPELINE = "flight-delays"


def _records_arrive(client: Everloop) -> bool:
    return client.stats(PIPELINE).received > 0


def _a_search_runs(client: Everloop) -> bool:
    return any(
        training.state == training_pb2.Training.STATE_RUNNING
        for training in client.trainings(PIPELINE, limit=1)
    )


def _a_model_is_trained(client: Everloop) -> bool:
    return any(
        training.state == training_pb2.Training.STATE_SUCCEEDED
        for training in client.trainings(PIPELINE, limit=1)
    )


def _predictions_are_watched(client: Everloop) -> bool:
    return bool(client.chunks(PIPELINE, limit=1))


KILLS: tuple[tuple[str, Callable[[Everloop], bool]], ...] = (
    ("ingest", _records_arrive),
    ("trainer", _a_search_runs),
    ("registry_gateway", _a_model_is_trained),
    ("inference", _predictions_are_watched),
    ("monitor", _predictions_are_watched),
)


class Killer:
    """Kills the parts of `KILLS` in turn, each as soon as its moment has come."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self._client: Everloop | None = None

    def __enter__(self) -> Killer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._client is not None:
            self._client.close()

    def __call__(self, home: Path) -> None:
        if len(self.killed) == len(KILLS) or not (home / "stack.json").exists():
            return
        part, moment = KILLS[len(self.killed)]
        try:
            if self._client is None:
                self._client = Everloop.connect(home, timeout=2.0)
            if not moment(self._client):
                return
        except EverloopError:
            return  # not up yet, or not up again
        stack.kill(home, part)
        self.killed.append(part)
