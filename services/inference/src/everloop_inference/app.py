"""The service process: keeps the data plane deployed, and answers for its health."""

from __future__ import annotations

import functools
import sys

from everloop_contracts.pipeline import PipelineError
from everloop_inference.metrics_gateway import metrics_server
from everloop_inference.placement.fingerprint import fingerprint
from everloop_inference.placement.watch import DataPlane, answering, listens
from everloop_inference.policies import load_policies
from everloop_inference.settings import InferenceSettings
from everloop_runtime import telemetry
from everloop_runtime.grpc_server import GrpcServer
from everloop_runtime.service import run

__all__ = ["main"]


def main() -> int:
    """Runs the service until it is told to stop; returns the exit status."""
    settings = InferenceSettings.load()
    telemetry.configure("inference", settings.log_level)
    try:
        policies = load_policies(settings.pipelines_dir)
    except PipelineError as error:
        print(error, file=sys.stderr)
        return 2
    grpc = GrpcServer(settings, (), ())
    data_plane = DataPlane(
        functools.partial(answering, settings.http_address),
        functools.partial(listens, settings.ray_address),
        fingerprint(settings, policies),
        seconds=settings.watch_seconds,
        failures=settings.watch_failures,
        deploy_seconds=settings.deploy_seconds,
    )
    return run([metrics_server(settings), grpc, data_plane], on_ready=grpc.ready)
