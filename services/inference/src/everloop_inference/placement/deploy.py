"""Brings Ray Serve to the wanted deployment; a program of its own that does this once and ends.

The service process does not join Ray itself: a process that has joined is ended by Ray when the head dies, and the
service must outlive that to deploy again. An application is named after its fingerprint. A new one is started beside
the old, on the same addresses, and the old one is removed when the new one runs: no request finds a closed door.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import sys
import time
from collections.abc import Mapping

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import ApplicationStatus

from everloop_inference.domain import ServingPolicy
from everloop_inference.placement import ingress
from everloop_inference.placement.deployment import application
from everloop_inference.policies import load_policies
from everloop_inference.settings import InferenceSettings
from everloop_runtime import telemetry

__all__ = ["deploy"]

log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
# Serve goes on by itself with these; an unhealthy application is one whose replica it is replacing.
ALIVE = {ApplicationStatus.RUNNING, ApplicationStatus.DEPLOYING, ApplicationStatus.UNHEALTHY}


def deploy(settings: InferenceSettings, rules: Mapping[str, ServingPolicy], mark: str) -> None:
    """Starts the deployment of a fingerprint unless it is there, and removes the others."""
    wanted = f"{settings.application}-{mark}"
    ray.init(
        address=settings.ray_address,
        namespace="everloop",
        log_to_driver=False,
        configure_logging=False,
    )
    _start(settings)
    known = {
        name: status.status
        for name, status in serve.status().applications.items()
        if name.startswith(f"{settings.application}-")
    }
    if known.get(wanted) in ALIVE:
        log.info("%s is there", wanted)
    else:
        log.info("%s starts", wanted)
        serve.run(application(settings, rules, mark), name=wanted, route_prefix=None)
    _route_ray(settings, wanted, mark)
    for name in known:
        if name != wanted:
            _wait_for(wanted)
            log.info("%s is removed", name)
            serve.delete(name)


def _route_ray(settings: InferenceSettings, wanted: str, mark: str) -> None:
    """Lets Ray's own proxies and handles lead to the wanted replicas, or nowhere."""
    name = settings.application
    is_there = name in serve.status().applications
    if not settings.ray_http_address:
        if is_there:
            serve.delete(name)
        return
    _wait_for(wanted)
    if is_there:
        # Ray Serve starts everything anew with every call of `run`.
        with contextlib.suppress(RayError, RayServeException, TimeoutError):
            if serve.get_app_handle(name).mark.remote().result(timeout_s=ASK_SECONDS) == mark:
                return
    behind = serve.get_app_handle(wanted)
    serve.run(
        ingress.application(behind, mark, settings.stream_requests, settings.callers_file),
        name=name,
        route_prefix="/",
    )


def _start(settings: InferenceSettings) -> None:
    """Starts Ray Serve, unless it runs; then it goes on with the proxies that it has."""
    if not settings.ray_http_address:
        serve.start(proxy_location="Disabled")
        return
    host, _, port = settings.ray_http_address.rpartition(":")
    serve.start(
        proxy_location="EveryNode",
        http_options={"host": host, "port": int(port)},
        grpc_options={
            "port": settings.ray_grpc_port,
            "grpc_servicer_functions": ingress.SERVICERS,
        }
        if settings.ray_grpc_port
        else None,
    )


def _wait_for(name: str) -> None:
    while serve.status().applications[name].status is not ApplicationStatus.RUNNING:
        time.sleep(0.2)


def main() -> int:
    """Deploys; another run for the same data folder waits until this one has ended.

    Its argument is the fingerprint that the service process waits for. Whoever starts it ends it when it takes too
    long: Ray's calls wait for ever for a head that is gone.
    """
    (mark,) = sys.argv[1:]
    settings = InferenceSettings.load()
    telemetry.configure("inference-deploy", settings.log_level)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with (settings.data_dir / "deploy.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            deploy(settings, load_policies(settings.pipelines_dir), mark)
        except (OSError, RayError) as error:
            log.error("Ray does not answer at %s: %s", settings.ray_address, error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
