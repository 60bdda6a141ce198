"""BentoML: one service in one worker, its access log, metrics and traces off."""

from __future__ import annotations

from typing import Any

import bentoml

from bench.inference.peers.flights import Flights


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Service:
    """The graph."""

    def __init__(self) -> None:
        self.flights = Flights()

    @bentoml.api
    async def predict(self, rows: list[dict[str, Any]]) -> dict[str, list[list[float]]]:
        """Answers rows; asynchronous, since the thread pool of a synchronous one costs more than the model."""
        return {"predictions": self.flights.predict(rows).tolist()}
