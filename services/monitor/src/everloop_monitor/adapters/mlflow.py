"""MLflow: where training left the reference sample."""

from __future__ import annotations

import os
import posixpath
import tempfile
from pathlib import Path

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.mlflow_errors import translated

__all__ = ["MlflowReferences"]

_FOLDER, _FILE = "everloop", "reference.parquet"


class MlflowReferences:
    """Reference samples from an MLflow server."""

    def __init__(self, uri: str, timeout_seconds: int) -> None:
        """Takes the server's address; a call that gets no answer in time is tried once more."""
        self._uri = uri
        # MLflow reads these itself, at every call; its defaults would hold the worker for minutes.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
        os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"  # it would draw into the log

    def load(self, run_id: str) -> bytes:
        """See `References.load`."""
        # Importing MLflow takes seconds: on the worker's thread, not at the start of the service.
        from mlflow import MlflowClient, artifacts

        with translated():
            run = MlflowClient(tracking_uri=self._uri).get_run(run_id)
        folder = f"{run.info.artifact_uri}/{_FOLDER}"
        try:
            with (
                tempfile.TemporaryDirectory(prefix="everloop-monitor-") as here,
                translated(files=True),
            ):
                # A file that is not there and an object store that is away fail alike: the list tells them apart.
                listed = artifacts.list_artifacts(folder, tracking_uri=self._uri)
                if _FILE not in [posixpath.basename(item.path) for item in listed]:
                    raise EverloopError(
                        Kind.NOT_FOUND,
                        "REFERENCE_NOT_FOUND",
                        f"run {run_id} has no {_FOLDER}/{_FILE}",
                        run_id=run_id,
                    )
                path = artifacts.download_artifacts(
                    f"{folder}/{_FILE}", dst_path=here, tracking_uri=self._uri
                )
                return Path(path).read_bytes()
        except OSError as error:
            raise EverloopError(
                Kind.UNAVAILABLE,
                "MLFLOW_UNAVAILABLE",
                f"{_FOLDER}/{_FILE} of run {run_id} cannot be fetched: {error}",
            ) from error
