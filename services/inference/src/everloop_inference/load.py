"""From a version in the registry to a model that may serve: download once, verify, warm."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from everloop_contracts.pipeline import Task
from everloop_features.inputs import InputSpec, feeds_from_rows
from everloop_inference.domain import ServedModel, ServingPolicy, Wanted
from everloop_inference.ports import Artifacts
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Loader"]

log = logging.getLogger(__name__)

MODEL, MANIFEST, GOLDEN = "model.onnx", "manifest.json", "golden.json"


class Loader:
    """Loads versions from a cache on disk, which it fills from the artifact store.

    The cache is addressed by content: `<SHA-256 of the graph>/<run id>/`.
    """

    def __init__(self, artifacts: Artifacts, cache: Path, tolerance: float = 1e-4) -> None:
        """Takes the store, the folder of the cache and how far a golden answer may be off."""
        self._artifacts = artifacts
        self._cache = cache
        self._tolerance = tolerance

    def load(self, wanted: Wanted, policy: ServingPolicy) -> ServedModel:
        """Returns the version, verified against the registry's SHA-256 and its golden answers.

        Raises:
            EverloopError: kind unavailable: the artifact cannot be had now; kind precondition: it is not what the
                registry says, or does not answer as it did when it was made (reasons `CHECKSUM_MISMATCH`,
                `BROKEN_ARTIFACT`, `GOLDEN_MISMATCH`).
        """
        folder = self._folder(wanted)
        fresh = not folder.is_dir()
        if fresh:
            self._download(wanted, folder)
        try:
            return self._read(wanted, policy, folder)
        except EverloopError:
            # Whatever is wrong with these files, the next attempt shall start from new ones.
            shutil.rmtree(folder, ignore_errors=True)
            if fresh:
                raise
            log.error(
                "the cached artifact of %s version %d is damaged", wanted.model, wanted.version
            )
        self._download(wanted, folder)
        return self._read(wanted, policy, folder)

    def prune(self, keep: Collection[Wanted]) -> None:
        """Removes every cached artifact but those of `keep`."""
        kept = {self._folder(wanted) for wanted in keep}
        for folder in self._cache.glob("*/*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)
        for parent in self._cache.glob("*"):
            if not any(parent.iterdir()):
                shutil.rmtree(parent, ignore_errors=True)

    def _folder(self, wanted: Wanted) -> Path:
        return self._cache / wanted.sha256 / wanted.run_id

    def _download(self, wanted: Wanted, folder: Path) -> None:
        staging = self._cache.parent / "downloads"
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging) as name:
            target = Path(name, "artifact")
            target.mkdir()
            self._artifacts.download(wanted.run_id, target)
            folder.parent.mkdir(parents=True, exist_ok=True)
            try:
                target.rename(folder)
            except OSError:
                if not folder.is_dir():  # otherwise another replica was quicker
                    raise

    def _read(self, wanted: Wanted, policy: ServingPolicy, folder: Path) -> ServedModel:
        try:
            graph = (folder / MODEL).read_bytes()
        except OSError as error:
            raise _broken(wanted, f"{MODEL} cannot be read: {error}") from error
        digest = hashlib.sha256(graph).hexdigest()
        if digest != wanted.sha256:
            raise EverloopError(
                Kind.PRECONDITION,
                "CHECKSUM_MISMATCH",
                f"the graph of {wanted.model} version {wanted.version} has SHA-256 {digest}, "
                f"the registry says {wanted.sha256}",
                model=wanted.model,
            )
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            golden = json.loads((folder / GOLDEN).read_bytes())
            model = _model(wanted, policy, graph, manifest)
            rows = golden["rows"]
            expected = np.asarray(golden["probabilities"], dtype=np.float64)
            answers = model.run(feeds_from_rows(rows, model.inputs))
            # A single row takes other paths through the runtime than a batch: warm both.
            model.run(feeds_from_rows(rows[:1], model.inputs))
        except Exception as error:
            # Anything can be wrong with a file, and onnxruntime has no error type of its own.
            raise _broken(wanted, f"{type(error).__name__}: {error}") from error
        self._compare(model, np.asarray(answers, dtype=np.float64), expected)
        return model

    def _compare(self, model: ServedModel, answers: Any, expected: Any) -> None:
        width = len(model.classes) or 1
        if answers.ndim != 2 or answers.shape[1] != width or not len(answers):
            raise _broken(model.wanted, f"answers of shape {answers.shape}, not [rows, {width}]")
        expected = expected.reshape(len(expected), -1)
        if answers.shape != expected.shape or not np.allclose(
            answers, expected, rtol=self._tolerance, atol=self._tolerance
        ):
            same = answers.shape == expected.shape
            off = f"off by {np.abs(answers - expected).max():.3g}" if same else "of another shape"
            raise EverloopError(
                Kind.PRECONDITION,
                "GOLDEN_MISMATCH",
                f"{model.name} version {model.version} answers its golden rows {off}",
                model=model.name,
            )


def _model(
    wanted: Wanted, policy: ServingPolicy, graph: bytes, manifest: dict[str, Any]
) -> ServedModel:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    inputs = tuple(InputSpec.from_json(item) for item in manifest["inputs"])
    taken = [item.name for item in session.get_inputs()]
    if sorted(taken) != sorted(spec.name for spec in inputs):
        raise ValueError(f"the graph takes {taken}, the manifest names other inputs")
    return ServedModel(
        wanted=wanted,
        task=Task(manifest["task"]),
        classes=tuple(manifest["classes"]),
        inputs=inputs,
        threshold=float(manifest.get("threshold", 0.5)),
        policy=policy,
        session=session,
        input_bytes=len(inputs) * sys.getsizeof(np.empty((1, 1))) + 1024,
        since=datetime.now(UTC),
    )


def _broken(wanted: Wanted, what: str) -> EverloopError:
    return EverloopError(
        Kind.PRECONDITION,
        "BROKEN_ARTIFACT",
        f"the artifact of {wanted.model} version {wanted.version} cannot serve: {what}",
        model=wanted.model,
    )
