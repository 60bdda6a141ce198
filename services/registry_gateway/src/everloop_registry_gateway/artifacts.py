"""The files of versions: judged as they lie in MLflow now, and handed out to replicas."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from typing import BinaryIO

from everloop_contracts.artifacts import EXPORT, artifact_sha256, digests
from everloop_registry_gateway.adapters.artifact_cache import ArtifactCache
from everloop_registry_gateway.domain import ModelVersion
from everloop_registry_gateway.metrics import ARTIFACTS_CHANGED, ARTIFACTS_SERVED
from everloop_registry_gateway.ports import ModelRegistry
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["PART_BYTES", "Artifacts"]

log = logging.getLogger(__name__)

PART_BYTES = 256 * 1024
"""Size of the parts that files are handed out in."""


class Artifacts:
    """Downloads the files of versions, compares them with what was registered, and keeps them for replicas."""

    def __init__(
        self, registry: ModelRegistry, cache: ArtifactCache, wait_seconds: float = 120.0
    ) -> None:
        """Takes the registry, the cache, and how long who asks waits for a download that runs."""
        self._registry = registry
        self._cache = cache
        self._wait_seconds = wait_seconds
        self._running: dict[str, Future[None]] = {}
        self._unrecorded: dict[str, str] = {}
        self._lock = threading.Lock()

    def look(self, model: str, run_id: str, onnx_sha256: str) -> Mapping[str, str]:
        """Downloads the files of a run, as they lie in MLflow now, and keeps them for replicas.

        Args:
            model: whose they are.
            run_id: MLflow's run.
            onnx_sha256: of the ONNX file as the training announced it; empty for a model without one.

        Returns:
            SHA-256, hexadecimal, of every file by path.

        Raises:
            EverloopError: kind not_found if the run or its ONNX file is gone; kind precondition, reason
                ARTIFACT_CHANGED, if the ONNX file is another one, or ARTIFACT_TOO_LARGE; kind unavailable if MLflow
                does not answer.
        """
        return self._take(model, run_id, onnx_sha256, {})

    def check(self, version: ModelVersion) -> None:
        """Does nothing but raise, as `look`, where the files of a version in MLflow are not those that were registered.

        Other files could answer anything: what was measured, and what the gates said, is not about them. A copy says
        nothing here, but what was downloaded for the check becomes the copy that replicas get.
        """
        found = self._take(version.model, version.run_id, version.onnx_sha256, version.files)
        if not version.files:
            self._unrecorded[version.run_id] = artifact_sha256(found)

    def parts(self, version: ModelVersion) -> Iterator[tuple[str, bytes]]:
        """Hands out the files of a version, from the cache or, where it has not got them, from MLflow.

        However many ask for a version at once, it is downloaded once.

        Yields:
            The path of a file and a part of it, of at most `PART_BYTES`; one without content comes as one empty part.

        Raises:
            EverloopError: as `check`; kind unavailable, reason ARTIFACT_DAMAGED, if the copy has been damaged: the next
                one who asks gets another.
        """
        found = self._cache.open(self._key(version))
        ARTIFACTS_SERVED.labels(version.model, "mlflow" if found is None else "cache").inc()
        if found is None:
            self._fetch(version)
            found = self._cache.open(self._key(version))
        if found is None:
            raise _unavailable(version, "are not kept any more")
        with ExitStack() as opened:
            for _, file in found:
                opened.callback(file.close)
            for path, file in found:
                digest = hashlib.sha256()
                for part in _parts(file):
                    digest.update(part)
                    yield path, part
                self._compare(version, path, digest.hexdigest())

    def _take(
        self, model: str, run_id: str, onnx_sha256: str, files: Mapping[str, str]
    ) -> Mapping[str, str]:
        with self._cache.incoming() as folder:
            self._registry.download(run_id, folder, self._cache.most_bytes)
            found = digests(folder)
            export = found.get(EXPORT, "")
            if onnx_sha256 and not export:
                what = f"run {run_id} holds no ONNX file"
                raise EverloopError(Kind.NOT_FOUND, "NOT_IN_MLFLOW", what)
            if onnx_sha256 and export != onnx_sha256:
                what = f"the ONNX file of run {run_id} has SHA-256 {export}, the training announced {onnx_sha256}"
                raise _changed(model, run_id, what, export)
            for path in sorted(files.keys() | found.keys()) if files else ():
                then, now = files.get(path, "none"), found.get(path, "none")
                if then != now:
                    what = (
                        f"{path} of run {run_id} has SHA-256 {now}, when it was registered {then}"
                    )
                    raise _changed(model, run_id, what, now)
            self._cache.keep(artifact_sha256(found), folder)
        return found

    def _fetch(self, version: ModelVersion) -> None:
        """Downloads a version, or waits for whoever does so already."""
        with self._lock:
            running = self._running.get(version.run_id)
            if running is None:
                mine = self._running[version.run_id] = Future()
        if running is not None:
            try:
                return running.result(self._wait_seconds)
            except TimeoutError as error:
                raise _unavailable(version, "are still on their way") from error
        try:
            self.check(version)
        except BaseException as error:
            mine.set_exception(error)
            raise
        else:
            mine.set_result(None)
        finally:
            with self._lock:
                del self._running[version.run_id]

    def _key(self, version: ModelVersion) -> str:
        """What the cache knows a version's files by; where they were not recorded, only once they were looked at."""
        return version.artifact_sha256 or self._unrecorded.get(version.run_id, "unknown")

    def _compare(self, version: ModelVersion, path: str, digest: str) -> None:
        expected = version.files or ({EXPORT: version.onnx_sha256} if version.onnx_sha256 else {})
        if expected.get(path, digest) != digest:
            self._cache.drop(self._key(version))
            log.error("the gateway's copy of %s of run %s was damaged", path, version.run_id)
            raise _unavailable(version, "were damaged here", "ARTIFACT_DAMAGED")


def _parts(file: BinaryIO) -> Iterator[bytes]:
    yield file.read(PART_BYTES)
    while part := file.read(PART_BYTES):
        yield part


def _changed(model: str, run_id: str, what: str, digest: str) -> EverloopError:
    ARTIFACTS_CHANGED.labels(model).inc()
    log.error("%s: %s", model, what)
    return EverloopError(
        Kind.PRECONDITION, "ARTIFACT_CHANGED", what, model=model, run_id=run_id, sha256=digest
    )


def _unavailable(
    version: ModelVersion, what: str, reason: str = "ARTIFACT_UNAVAILABLE"
) -> EverloopError:
    message = f"the files of version {version.version} of {version.model} {what}: try again"
    return EverloopError(Kind.UNAVAILABLE, reason, message, model=version.model)
