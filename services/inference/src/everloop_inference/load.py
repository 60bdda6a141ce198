"""From a version in the registry to a model that may serve: download once, verify, warm."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from everloop_contracts.pipeline import Task
from everloop_features.inputs import Block, InputSpec, Layout, feeds_from_rows
from everloop_inference.adapters.onnx import OnnxEngine
from everloop_inference.cost import Cost
from everloop_inference.domain import ServedModel, ServingPolicy, Wanted
from everloop_inference.ports import Artifacts
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Loader"]

log = logging.getLogger(__name__)

WARM_RUNS = 5
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
            _warm(model, rows)
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
    engine = OnnxEngine(graph)
    inputs = tuple(InputSpec.from_json(item) for item in manifest["inputs"])
    if sorted(engine.inputs) != sorted(spec.name for spec in inputs):
        raise ValueError(f"the graph takes {engine.inputs}, the manifest names other inputs")
    return ServedModel(
        wanted=wanted,
        task=Task(manifest["task"]),
        classes=tuple(manifest["classes"]),
        layout=Layout(inputs),
        threshold=float(manifest.get("threshold", 0.5)),
        policy=policy,
        engine=engine,
        cost=Cost(fixed=1e-4, row=1e-5),
        input_bytes=len(inputs) * sys.getsizeof(np.empty((1, 1))) + 1024,
        since=datetime.now(UTC),
    )


def _warm(model: ServedModel, rows: Sequence[Mapping[str, Any]]) -> None:
    """Runs one row and all of them, which takes different paths through the runtime, and learns what they cost."""
    one, many = (model.layout.from_rows(chosen) for chosen in (rows[:1], rows))
    short, long = (_quickest(model, block) for block in (one, many))
    model.cost.row = max(long - short, 0.01 * long) / max(many.rows - 1, 1)
    model.cost.fixed = max(short - model.cost.row, 0.1 * short)


def _quickest(model: ServedModel, block: Block) -> float:
    """Seconds that the best of some runs took: the others met something else."""
    took = []
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        model.run(model.layout.feeds(block))
        took.append(time.perf_counter() - began)
    return min(took)


def _broken(wanted: Wanted, what: str) -> EverloopError:
    return EverloopError(
        Kind.PRECONDITION,
        "BROKEN_ARTIFACT",
        f"the artifact of {wanted.model} version {wanted.version} cannot serve: {what}",
        model=wanted.model,
    )
