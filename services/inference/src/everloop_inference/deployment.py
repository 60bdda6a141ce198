"""The Ray Serve deployment: Ray places and supervises the replicas, the replicas answer by themselves."""

from __future__ import annotations

import atexit
import logging
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler

from ray import serve

from everloop_inference.domain import ServingPolicy
from everloop_inference.replica import Replica
from everloop_inference.settings import InferenceSettings
from everloop_runtime import telemetry

__all__ = ["ServeReplica", "application"]

HEALTH_TIMEOUT_SECONDS = 10.0
LOG_BYTES = 10 * 1024 * 1024


class ServeReplica:
    """What Ray Serve starts, checks and stops."""

    def __init__(
        self,
        settings: InferenceSettings,
        policies: Mapping[str, ServingPolicy],
        fingerprint: str,
    ) -> None:
        """Returns when the replica listens."""
        _log_to_file(settings)
        self._replica = Replica(settings, policies, fingerprint)
        self._replica.start()
        self._stopped = False
        # Ray ends a replica's process by a signal when the whole cluster stops, without the call below.
        atexit.register(self._stop)

    async def check_health(self) -> None:
        """Raises if the replica does not work; Ray Serve then replaces it."""
        await self._replica.check(HEALTH_TIMEOUT_SECONDS / 2)

    def __del__(self) -> None:
        """Drains; Ray Serve calls it before it ends the process."""
        self._stop()

    def _stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            self._replica.stop()


def application(
    settings: InferenceSettings, policies: Mapping[str, ServingPolicy], fingerprint: str
) -> serve.Application:
    """Describes the deployment to Ray Serve."""
    deployment = serve.deployment(
        name="replica",
        num_replicas=settings.replicas,
        # Requests do not come through Ray, only health checks do.
        max_ongoing_requests=16,
        ray_actor_options={"num_cpus": settings.replica_cpus},
        health_check_period_s=settings.replica_health_seconds,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=settings.drain_seconds + 10.0,
    )(ServeReplica)
    return deployment.bind(settings, dict(policies), fingerprint)


def _log_to_file(settings: InferenceSettings) -> None:
    """Writes the log to a file beside the data: Ray keeps a worker's own output where nobody looks."""
    telemetry.configure("inference-replica", settings.log_level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    root = logging.getLogger()
    folder = settings.data_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(folder / "replica.log", maxBytes=LOG_BYTES, backupCount=2)
    handler.setFormatter(root.handlers[0].formatter)
    root.addHandler(handler)
