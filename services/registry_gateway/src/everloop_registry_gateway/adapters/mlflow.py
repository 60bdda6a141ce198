"""The MLflow Model Registry."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.mlflow_errors import translated

__all__ = ["MlflowRegistry"]

TRAINING_TAG = "everloop.training_id"
ONNX = "model/model.onnx"
"""The one file of a model, below its run."""


class MlflowRegistry:
    """Talks to an MLflow server, or to its database where the address is one.

    Makes single attempts: who calls knows whether and when to repeat, and a creation that MLflow's client repeated
    by itself could leave two versions.
    """

    def __init__(self, uri: str, timeout_seconds: int = 10) -> None:
        """Takes the address of MLflow and the time it gets for one answer."""
        # MLflow's client takes these from the environment of the process and from nowhere else.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        # Imported late: it takes seconds, and only a process that talks to MLflow should spend them.
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def ensure_version(
        self, model: str, training_id: str, run_id: str, source: str, tags: Mapping[str, str]
    ) -> int:
        """Finds the version by its run and training, or makes it; sets no tags of one that is there."""
        with translated():
            found = self._find(model, training_id, run_id)
            if found:
                return found
            self._ensure_model(model)
            model_id = self._logged_model(source)
            made = self._client.create_model_version(
                model,
                f"models:/{model_id}" if model_id else source,
                run_id=run_id,
                tags={**tags, TRAINING_TAG: training_id},
                await_creation_for=0,
                model_id=model_id,
            )
            return int(made.version)

    def aliases(self, model: str) -> Mapping[str, int]:
        """Asks for the model itself: a search for versions returns them without aliases."""
        try:
            with translated():
                found = self._client.get_registered_model(model).aliases
        except EverloopError as error:
            if error.kind is Kind.NOT_FOUND:
                return {}
            raise
        return {alias: int(version) for alias, version in found.items()}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Sets it, whatever it stood for."""
        with translated():
            self._client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        """Deletes it."""
        with translated():
            self._client.delete_registered_model_alias(model, alias)

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Sets one after the other."""
        with translated():
            for key, value in tags.items():
                self._client.set_model_version_tag(model, str(version), key, value)

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version."""
        with translated():
            tags: dict[str, str] = self._client.get_model_version(model, str(version)).tags
            return tags

    def digest(self, run_id: str) -> str:
        """Downloads the file: MLflow keeps no digest of its own that nobody else could write."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory() as folder:
            with translated(files=True):
                found = download_artifacts(
                    artifact_uri=f"runs:/{run_id}/{ONNX}",
                    dst_path=folder,
                    tracking_uri=self._client.tracking_uri,
                )
            with Path(found).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()

    def check_version(self, model: str, version: int) -> None:
        """Asks for the version."""
        with translated():
            self._client.get_model_version(model, str(version))

    def _find(self, model: str, training_id: str, run_id: str) -> int:
        versions = self._client.search_model_versions(f"run_id = '{run_id}'")
        numbers = [
            int(version.version)
            for version in versions
            if version.name == model and version.tags.get(TRAINING_TAG) == training_id
        ]
        return min(numbers, default=0)

    def _logged_model(self, source: str) -> str | None:
        """Id of the logged model behind a source; None if it is a plain folder of artifacts.

        A version whose source is `runs:/…/model` cannot be loaded by its alias: MLflow keeps the files of a logged
        model apart from those of its run.
        """
        if source.startswith("models:/m-"):
            return source.removeprefix("models:/")
        if not source.startswith("runs:/"):
            return None
        run_id, _, name = source.removeprefix("runs:/").partition("/")
        found = self._client.search_logged_models(
            [self._client.get_run(run_id).info.experiment_id],
            filter_string=f"name = '{name}' AND source_run_id = '{run_id}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            max_results=1,
        )
        return found[0].model_id if found else None

    def _ensure_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
