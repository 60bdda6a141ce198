"""LitServe: one API server and one worker, over its fast queue.

Usage: python litserve_server.py <http port>
"""

from __future__ import annotations

import sys
from typing import Any

import litserve

from bench.inference.peers.flights import Flights


class Api(litserve.LitAPI):
    """The graph."""

    def setup(self, device: str) -> None:
        """Loads it in the worker."""
        self.flights = Flights()

    def predict(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers rows."""
        return {"predictions": self.flights.predict(request["rows"]).tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(
        Api(), accelerator="cpu", devices=1, workers_per_device=1, fast_queue=True
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
