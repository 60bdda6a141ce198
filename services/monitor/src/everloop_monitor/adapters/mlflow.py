"""MLflow: where training left the reference sample."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from everloop_runtime.errors import EverloopError, Kind

__all__ = ["MlflowReferences"]

_ARTIFACT = "everloop/reference.parquet"


class MlflowReferences:
    """Reference samples from an MLflow server."""

    def __init__(self, uri: str, timeout_seconds: int) -> None:
        """Takes the server's address; a call that gets no answer in time is tried once more."""
        self._uri = uri
        # MLflow reads these itself, at every call; its defaults would hold the worker for minutes.
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"

    def load(self, run_id: str) -> bytes:
        """See `References.load`."""
        # Importing MLflow takes seconds: on the worker's thread, not at the start of the service.
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="everloop-monitor-") as folder:
            try:
                path = MlflowClient(tracking_uri=self._uri).download_artifacts(
                    run_id, _ARTIFACT, folder
                )
                return Path(path).read_bytes()
            except MlflowException as error:
                if error.get_http_status_code() == 404:
                    raise EverloopError(
                        Kind.NOT_FOUND,
                        "REFERENCE_NOT_FOUND",
                        f"run {run_id} has no {_ARTIFACT}: {error}",
                        run_id=run_id,
                    ) from error
                raise EverloopError(
                    Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", f"MLflow does not answer: {error}"
                ) from error
            except OSError as error:
                raise EverloopError(
                    Kind.UNAVAILABLE,
                    "MLFLOW_UNAVAILABLE",
                    f"{_ARTIFACT} of run {run_id} cannot be fetched: {error}",
                ) from error
