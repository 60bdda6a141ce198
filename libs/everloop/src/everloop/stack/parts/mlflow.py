"""MLflow: tracking and registry server on SQLite, artifacts proxied to the S3 endpoint."""

from __future__ import annotations

import sys

from everloop.stack.endpoints import Endpoints
from everloop.stack.home import Home
from everloop.stack.part import STEPS_BACK, Part, Progress
from everloop.stack.probes import http_ok

__all__ = ["part"]


def part(home: Home, endpoints: Endpoints) -> Part:
    """Describe the server. It does not need S3 to start, only to store artifacts."""
    data = home.data("mlflow")
    address = f"127.0.0.1:{endpoints.ports['mlflow']}"

    def prepare(progress: Progress) -> None:
        data.mkdir(parents=True, exist_ok=True)

    return Part(
        name="mlflow",
        command=(
            sys.executable,
            "-m",
            "everloop.stack.mlflow_server",
            f"--store=sqlite:///{data / 'mlflow.db'}",
            f"--artifacts=s3://{endpoints.mlflow_bucket}",
            f"--port={endpoints.ports['mlflow']}",
        ),
        environment={
            "AWS_ACCESS_KEY_ID": endpoints.s3_access_key,
            "AWS_SECRET_ACCESS_KEY": endpoints.s3_secret_key,
            "AWS_DEFAULT_REGION": endpoints.s3_region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MLFLOW_S3_ENDPOINT_URL": endpoints.s3_url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
        endpoint=endpoints.mlflow_uri,
        probe=lambda: http_ok(address, "/health"),
        prepare=prepare,
        # The first start makes the tables.
        deadline_seconds=180,
        niceness=STEPS_BACK,
    )
