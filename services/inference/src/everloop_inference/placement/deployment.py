"""The Ray Serve deployment: Ray places and supervises the replicas, the replicas answer by themselves."""

from __future__ import annotations

import atexit
import math
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.handle import DeploymentHandle

from everloop_inference.adapters.serve_handle import ServeHandle
from everloop_inference.domain import ServingPolicy
from everloop_inference.listeners import STOP_SECONDS
from everloop_inference.placement import autoscaling
from everloop_inference.placement.autoscaling import ONGOING
from everloop_inference.placement.log_files import log_to_file
from everloop_inference.ports import HttpReply, HttpRequest, RpcReply, RpcRequest
from everloop_inference.replica import Replica
from everloop_inference.settings import InferenceSettings
from everloop_runtime import telemetry

__all__ = ["ServeReplica", "application"]

HEALTH_TIMEOUT_SECONDS = 10.0
STOP_MARGIN_SECONDS = 5.0


class ServeReplica:
    """What Ray Serve starts, checks, asks how busy it is, and stops."""

    def __init__(
        self,
        settings: InferenceSettings,
        policies: Mapping[str, ServingPolicy],
        fingerprint: str,
        pools: Mapping[str, DeploymentHandle[Any]],
        only: str = "",
    ) -> None:
        """Returns when the replica listens; `only` names the model of a pool's replica, which does not."""
        telemetry.configure("inference-replica", settings.log_level)
        log_to_file(settings.data_dir / "logs", f"pool-{only}" if only else "replica")
        self._stopped = True  # until it has started: `__del__` comes after a start that failed, too
        self._replica = Replica(
            settings,
            policies,
            fingerprint,
            only=only,
            pools={name: ServeHandle(handle) for name, handle in pools.items()},
        )
        self._replica.start()
        self._stopped = False
        # Ray ends a replica's process by a signal when the whole cluster stops, without the call below.
        atexit.register(self._stop)

    async def http(self, request: HttpRequest) -> HttpReply:
        """Answers what another replica, or Ray Serve's own proxy, passed on."""
        return await self._replica.http(request)

    async def rpc(self, request: RpcRequest) -> RpcReply:
        """As `http`, a unary call of gRPC."""
        return await self._replica.rpc(request)

    async def check_health(self) -> None:
        """Raises if the replica does not work; Ray Serve then replaces it."""
        await self._replica.check(HEALTH_TIMEOUT_SECONDS / 2)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tells Ray Serve what it cannot count: most requests come past it."""
        return {ONGOING: self._replica.ongoing()}

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
    """Describes the deployments to Ray Serve: the replicas that listen, and behind them the pools."""
    pools = {
        name: _deployment(
            settings,
            f"pool-{name}",
            _replicas(
                settings,
                policy.pool.min_replicas,
                policy.pool.max_replicas,
                target_ongoing_requests=policy.pool.ongoing_requests,
                policy=AutoscalingPolicy(policy_function=autoscaling.pool_policy),
                downscale_to_zero_delay_s=policy.pool.idle_seconds,
            ),
            # More wait at the callers, for a replica that has room or starts.
            max_ongoing_requests=max(2, math.ceil(2 * policy.pool.ongoing_requests)),
        ).bind(settings, dict(policies), fingerprint, {}, name)
        for name, policy in policies.items()
        if policy.pool
    }
    listening = _deployment(
        settings,
        "replica",
        _replicas(
            settings,
            settings.replicas,
            settings.most_replicas,
            target_ongoing_requests=settings.replica_ongoing_requests,
            policy=AutoscalingPolicy(policy_function=autoscaling.policy),
        ),
        # Of what comes through Ray; its own queue bounds the replica.
        max_ongoing_requests=settings.queue_requests,
    )
    return listening.bind(settings, dict(policies), fingerprint, pools)


def _deployment(
    settings: InferenceSettings, name: str, replicas: dict[str, Any], max_ongoing_requests: int
) -> serve.Deployment:
    return serve.deployment(
        name=name,
        **replicas,
        max_ongoing_requests=max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.replica_cpus},
        health_check_period_s=settings.replica_health_seconds,
        health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_stop_seconds(settings),
    )(ServeReplica)


def _stop_seconds(settings: InferenceSettings) -> float:
    """Time after which Ray ends a replica that does not end by itself: to drain, and to write the log out.

    Kafka may take its time twice: for the batch that is on its way, and for the last one.
    """
    log_seconds = 2 * settings.log_send_seconds
    return settings.drain_seconds + STOP_SECONDS + log_seconds + STOP_MARGIN_SECONDS


def _replicas(settings: InferenceSettings, least: int, most: int, **scaling: Any) -> dict[str, Any]:
    """A fixed number, or the bounds that Ray Serve moves between."""
    if least == most:
        return {"num_replicas": least}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            upscale_delay_s=settings.scale_up_seconds,
            downscale_delay_s=settings.scale_down_seconds,
            look_back_period_s=settings.scale_window_seconds,
            **scaling,
        )
    }
