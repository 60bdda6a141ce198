"""The MLflow Model Registry."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from everloop_contracts.artifacts import COMPILED, EXPORT
from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.mlflow_errors import translated

__all__ = ["MlflowRegistry"]

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

TRAINING_TAG = "everloop.training_id"
MODEL = "model"
"""Name of the logged model of a run."""
FOLDER = "everloop"
BESIDE = {"manifest.json", "golden.json"}
"""What replicas load besides it, of this folder."""
DESCRIPTIONS = {
    f"{MODEL}/{name}"
    for name in (
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "input_example.json",
        "serving_input_example.json",
    )
}
"""What MLflow writes for whoever builds an environment for a model, or asks it; nothing that loads it reads them."""
DOWNLOADS = 8
"""Files that are downloaded at once."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file in a store, and where it goes below the folder of its version."""

    store: ArtifactRepository
    path: str
    size: int
    target: str


class MlflowRegistry:
    """Talks to an MLflow server, or to its database where the address is one.

    Makes single attempts: who calls knows whether and when to repeat, and a creation that MLflow's client repeated
    by itself could leave two versions.
    """

    def __init__(
        self, uri: str, timeout_seconds: int = 10, download_seconds: float = 120.0
    ) -> None:
        """Takes the address of MLflow, the time it gets for one answer, and for the files of one version."""
        # MLflow's client takes these from the environment of the process and from nowhere else.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(timeout_seconds)
        # Imported late: it takes seconds, and only a process that talks to MLflow should spend them.
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._download_seconds = download_seconds
        self._away = False

    @property
    def away(self) -> bool:
        """See `ports.ModelRegistry`."""
        return self._away

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """As `translated`, and notes whether there was an answer."""
        try:
            with translated():
                yield
        except EverloopError as error:
            self._away = error.kind is Kind.UNAVAILABLE
            raise
        self._away = False

    def ensure_version(
        self, model: str, training_id: str, run_id: str, source: str, tags: Mapping[str, str]
    ) -> int:
        """Finds the version by its run and training, or makes it; sets no tags of one that is there."""
        with self._asking():
            found = self._find(model, training_id, run_id)
            if found:
                return found
            self._ensure_model(model)
            model_id = self._model_id(source)
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
            with self._asking():
                found = self._client.get_registered_model(model).aliases
        except EverloopError as error:
            if error.kind is Kind.NOT_FOUND:
                return {}
            raise
        return {alias: int(version) for alias, version in found.items()}

    def set_alias(self, model: str, alias: str, version: int) -> None:
        """Sets it, whatever it stood for."""
        with self._asking():
            self._client.set_registered_model_alias(model, alias, str(version))

    def delete_alias(self, model: str, alias: str) -> None:
        """Deletes it."""
        with self._asking():
            self._client.delete_registered_model_alias(model, alias)

    def set_tags(self, model: str, version: int, tags: Mapping[str, str]) -> None:
        """Sets one after the other."""
        with self._asking():
            for key, value in tags.items():
                self._client.set_model_version_tag(model, str(version), key, value)

    def tags(self, model: str, version: int) -> Mapping[str, str]:
        """Tags of a version."""
        with self._asking():
            tags: dict[str, str] = self._client.get_model_version(model, str(version)).tags
            return tags

    def download(self, run_id: str, folder: Path, most_bytes: int) -> None:
        """Asks the stores of the run and of its logged model themselves.

        MLflow's own way to a run's files takes an outage for a file that is not there.
        """
        began = time.monotonic()
        with _transferring(run_id):
            pool = ThreadPoolExecutor(DOWNLOADS, thread_name_prefix="mlflow-download")
            try:
                files = self._files(run_id, pool)
                size = sum(file.size for file in files)
                if size > most_bytes:
                    raise EverloopError(
                        Kind.PRECONDITION,
                        "ARTIFACT_TOO_LARGE",
                        f"the files of run {run_id} are {size} bytes, the gateway takes {most_bytes}: raise "
                        "EVERLOOP_ARTIFACT_CACHE_BYTES",
                        run_id=run_id,
                    )
                left = began + self._download_seconds - time.monotonic()
                _finish(run_id, [pool.submit(_fetch, file, folder) for file in files], left)
            finally:
                # What still hangs ends by the time that MLflow gets for one answer, or with the process.
                pool.shutdown(wait=False, cancel_futures=True)

    def check_version(self, model: str, version: int) -> None:
        """Asks for the version."""
        with self._asking():
            self._client.get_model_version(model, str(version))

    def _files(self, run_id: str, pool: ThreadPoolExecutor) -> list[_File]:
        """What replicas load of a run: its logged model, or its folder of that name, and two files beside."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        uri = self._client.tracking_uri
        info = self._client.get_run(run_id).info
        run = get_artifact_repository(info.artifact_uri, uri)
        listed = pool.submit(lambda: list(_listed(run, FOLDER, FOLDER)))
        logged = self._logged_model(info.experiment_id, run_id, MODEL)
        model = (
            _listed(get_artifact_repository(logged.artifact_location, uri), "", MODEL)
            if logged
            else _listed(run, MODEL, MODEL)
        )
        return [
            *(file for file in model if file.target not in DESCRIPTIONS),
            *(file for file in listed.result() if file.target in BESIDE),
        ]

    def _find(self, model: str, training_id: str, run_id: str) -> int:
        versions = self._client.search_model_versions(f"run_id = '{run_id}'")
        numbers = [
            int(version.version)
            for version in versions
            if version.name == model and version.tags.get(TRAINING_TAG) == training_id
        ]
        return min(numbers, default=0)

    def _model_id(self, source: str) -> str | None:
        """Id of the logged model behind a source; None if it is a plain folder of artifacts.

        A version whose source is `runs:/…/model` cannot be loaded by its alias: MLflow keeps the files of a logged
        model apart from those of its run.
        """
        if source.startswith("models:/m-"):
            return source.removeprefix("models:/")
        if not source.startswith("runs:/"):
            return None
        run_id, _, name = source.removeprefix("runs:/").partition("/")
        experiment = self._client.get_run(run_id).info.experiment_id
        found = self._logged_model(experiment, run_id, name)
        return found.model_id if found else None

    def _logged_model(self, experiment: str, run_id: str, name: str) -> LoggedModel | None:
        """The newest of a run with a name."""
        found = self._client.search_logged_models(
            [experiment],
            filter_string=f"name = '{name}' AND source_run_id = '{run_id}'",
            order_by=[{"field_name": "creation_timestamp", "ascending": False}],
            max_results=1,
        )
        return found[0] if found else None

    def _ensure_model(self, model: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise


def _listed(store: ArtifactRepository, folder: str, prefix: str) -> Iterator[_File]:
    """Every file below a folder of a store; `prefix` is what the folder is called among the files of a version."""
    for found in store.list_artifacts(folder or None):
        if PurePosixPath(found.path).name == COMPILED:
            continue
        if found.is_dir:
            if found.path != folder:
                yield from _listed(store, found.path, f"{prefix}/{PurePosixPath(found.path).name}")
            continue
        name = PurePosixPath(found.path).name
        yield _File(store, found.path, found.file_size or 0, _target(f"{prefix}/{name}"))


def _target(path: str) -> str:
    """Where replicas look for a file: the export, the manifest and the golden rows are next to the logged model."""
    folder, _, name = path.partition("/")
    is_beside = path == f"{MODEL}/{EXPORT}" or (folder == FOLDER and name in BESIDE)
    return name if is_beside else path


def _fetch(file: _File, folder: Path) -> None:
    target = folder / file.target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Each kind of store implements this; `download_artifacts` would ask it first whether the file is a folder.
    file.store._download_file(file.path, str(target))


def _finish(run_id: str, downloads: list[Future[None]], seconds: float) -> None:
    done, waiting = wait(downloads, max(seconds, 0), FIRST_EXCEPTION)
    for download in done:
        download.result()
    if waiting:
        raise EverloopError(
            Kind.UNAVAILABLE,
            "MLFLOW_UNAVAILABLE",
            f"MLflow does not give the files of run {run_id} in time: try again",
        )


@contextmanager
def _transferring(run_id: str) -> Iterator[None]:
    """As `translated`, for what the stores of files raise beside MLflow's own errors."""
    from requests import HTTPError, RequestException

    try:
        with translated(files=True):
            yield
    except HTTPError as error:
        is_gone = error.response is not None and error.response.status_code == 404
        kind, reason = (
            (Kind.NOT_FOUND, "NOT_IN_MLFLOW") if is_gone else (Kind.INTERNAL, "MLFLOW_FAILED")
        )
        raise EverloopError(kind, reason, f"the files of run {run_id}: {error}") from error
    except RequestException as error:
        raise EverloopError(
            Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", f"the files of run {run_id} broke off: {error}"
        ) from error
