"""Artifacts of MLflow runs, fetched by MLflow's own client in a process of its own.

MLflow's import takes seconds and 170 MB, its client retries for minutes, and none of that belongs into a process that
answers requests: a child is killed when its time is up, and what it used is gone with it. It is nicer than the replica:
what it does can wait.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["MlflowArtifacts"]

NICENESS = 10
"""Not the most that there is: on a busy machine the download must still end in its time."""
FILES = ("model", "everloop/manifest.json", "everloop/golden.json")


class MlflowArtifacts:
    """Downloads with the tracking server's address and, where it does not proxy, the object store's keys."""

    def __init__(
        self,
        tracking_uri: str,
        timeout_seconds: float,
        s3_endpoint: str = "",
        s3_access_key: str = "",
        s3_secret_key: str = "",
        s3_region: str = "",
    ) -> None:
        """Takes addresses and keys; without keys the ambient credentials hold."""
        self._timeout = timeout_seconds
        self._environment = {
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        if s3_access_key:
            self._environment |= {
                "MLFLOW_S3_ENDPOINT_URL": s3_endpoint,
                "AWS_ACCESS_KEY_ID": s3_access_key,
                "AWS_SECRET_ACCESS_KEY": s3_secret_key,
                "AWS_DEFAULT_REGION": s3_region,
            }

    def download(self, run_id: str, folder: Path) -> None:
        """See `ports.Artifacts`."""
        command = [sys.executable, "-m", __name__, run_id, str(folder)]
        try:
            done = subprocess.run(
                command,
                env={**os.environ, **self._environment},
                timeout=self._timeout,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
            )
        except subprocess.TimeoutExpired as error:
            raise _unavailable(run_id, f"not there after {self._timeout:g} s") from error
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            raise _unavailable(run_id, lines[-1] if lines else f"exit status {done.returncode}")


def _unavailable(run_id: str, why: str) -> EverloopError:
    return EverloopError(
        Kind.UNAVAILABLE,
        "ARTIFACT_UNAVAILABLE",
        f"the artifact of run {run_id}: {why}",
        run_id=run_id,
    )


def _download(run_id: str, folder: Path) -> None:
    """Runs in the child."""
    from mlflow.artifacts import download_artifacts  # see the module's docstring

    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in FILES:
        download_artifacts(artifact_uri=f"runs:/{run_id}/{name}", dst_path=str(folder))
    for found in (folder / "model").rglob("*.onnx"):
        found.rename(folder / "model.onnx")
    for path in [*folder.rglob("manifest.json"), *folder.rglob("golden.json")]:
        path.rename(folder / path.name)


if __name__ == "__main__":
    os.nice(NICENESS)
    _download(sys.argv[1], Path(sys.argv[2]))
