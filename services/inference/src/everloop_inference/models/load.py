"""From a version in the registry to a model that may serve: download once, verify, warm."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from everloop_contracts.artifacts import EXPORT, artifact_sha256, digests
from everloop_contracts.pipeline import Task
from everloop_features.inputs import Block, InputSpec, Layout
from everloop_inference.cost import Cost
from everloop_inference.domain import Engine, ServedModel, ServingPolicy, Wanted
from everloop_inference.ports import Artifacts, Engines, Exported
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Loader"]

log = logging.getLogger(__name__)

WARM_RUNS: Final = 5
LOGGED, MANIFEST, GOLDEN = "model", "manifest.json", "golden.json"
_NO_PARITY: Final = frozenset({"EXPORT_MISSING", "BROKEN_EXPORT", "GOLDEN_MISMATCH"})


class Loader:
    """Loads versions from a cache on disk, which it fills from the artifact store.

    The cache is addressed by content: `<SHA-256 of the export>/<run id>/`.
    """

    def __init__(
        self,
        artifacts: Artifacts,
        engines: Engines,
        cache: Path,
        tolerance: float = 1e-4,
        most_bytes: int = 0,
    ) -> None:
        """Takes what it works with.

        Args:
            artifacts: the store.
            engines: what runs models.
            cache: folder of the cache.
            tolerance: how far a golden answer may be off.
            most_bytes: bytes that the cache may hold, unless what must be kept is more.
        """
        self._most_bytes = most_bytes
        self._artifacts = artifacts
        self._engines = engines
        self._cache = cache
        self._tolerance = tolerance

    def has(self, wanted: Wanted) -> bool:
        """Whether the cache holds a version's files, which may be damaged."""
        return self._folder(wanted).is_dir()

    def cached(self, wanted: Wanted, policy: ServingPolicy) -> ServedModel:
        """As `load`, from this machine's disk alone; leaves the files as they are.

        Raises:
            EverloopError: as `load`; kind unavailable also where the cache does not hold the version.
        """
        if not self.has(wanted):
            message = f"{wanted.model} version {wanted.version} is not on this machine's disk"
            raise EverloopError(Kind.UNAVAILABLE, "NOT_CACHED", message, model=wanted.model)
        return self._read(wanted, policy, self._folder(wanted))

    def load(self, wanted: Wanted, policy: ServingPolicy) -> ServedModel:
        """Returns the version, verified against the registry's SHA-256 and its golden answers.

        The ONNX export is what runs. Where it is missing or does not give the golden answers, and the version was
        logged in another flavor as well, that flavor runs instead: right and slow.

        Raises:
            EverloopError: kind unavailable: the artifact cannot be had now; kind precondition: it is not what the
                registry says, or does not answer as it did when it was made (reasons `CHECKSUM_MISMATCH`,
                `BROKEN_ARTIFACT`, `EXPORT_MISSING`, `BROKEN_EXPORT`, `GOLDEN_MISMATCH`); its files are removed.
            MemoryError, OSError: this machine lacks something.
        """
        folder = self._folder(wanted)
        if not self.has(wanted):
            self.fetch(wanted)
        try:
            model = self._read(wanted, policy, folder)
        except EverloopError:
            # Whatever is wrong with these files, the next attempt shall start from new ones.
            shutil.rmtree(folder, ignore_errors=True)
            raise
        with contextlib.suppress(OSError):  # only its place in the queue of those that go
            os.utime(folder)
        return model

    def fetch(self, wanted: Wanted) -> None:
        """Downloads a version's files into the cache; may be called by several threads.

        Raises:
            EverloopError: as `Artifacts.download`.
            OSError: they cannot be kept.
        """
        folder = self._folder(wanted)
        staging = self._cache.parent / "downloads"
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=staging) as name:
            target = Path(name, "artifact")
            target.mkdir()
            self._artifacts.download(wanted, target)
            while not folder.is_dir():  # otherwise another replica was quicker
                folder.parent.mkdir(parents=True, exist_ok=True)
                try:
                    target.rename(folder)
                except FileNotFoundError:  # whoever cleans up took the parent away
                    if not target.is_dir():
                        raise
                except OSError:
                    if not folder.is_dir():
                        raise

    def prune(self, keep: Collection[Wanted]) -> None:
        """Removes what does not fit into the cache, what was not loaded for longest first; `keep` stays in any case."""
        kept = {self._folder(wanted) for wanted in keep}
        folders = [folder for parent in _entries(self._cache) for folder in _entries(parent)]
        newest_first = sorted(folders, key=_last_used, reverse=True)
        room = self._most_bytes - sum(_size(folder) for folder in newest_first if folder in kept)
        for folder in newest_first:
            if folder in kept:
                continue
            room -= _size(folder)
            if room < 0:
                shutil.rmtree(folder, ignore_errors=True)
        for parent in _entries(self._cache):
            # Another replica may be putting something into it: only what is empty goes.
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _folder(self, wanted: Wanted) -> Path:
        return self._cache / (wanted.sha256 or "no-export") / wanted.run_id

    def _read(self, wanted: Wanted, policy: ServingPolicy, folder: Path) -> ServedModel:
        try:
            if wanted.artifact_sha256:
                _check(wanted, artifact_sha256(digests(folder)))
            manifest = json.loads((folder / MANIFEST).read_bytes())
            golden = json.loads((folder / GOLDEN).read_bytes())
            layout = Layout([InputSpec.from_json(item) for item in manifest["inputs"]])
        except (MemoryError, EverloopError):  # says nothing about the file, or all
            raise
        except Exception as error:  # anything can be wrong with a file
            raise _refused(wanted, "BROKEN_ARTIFACT", f"{type(error).__name__}: {error}") from error
        try:
            engine: Engine = self._export(wanted, folder, layout)
            return self._verified(wanted, policy, manifest, golden, layout, engine)
        except EverloopError as error:
            if error.reason not in _NO_PARITY or not self._engines.can_run_logged(folder / LOGGED):
                raise
            log.error(
                "%s version %d will answer slowly, by the logged model instead of its export: %s",
                wanted.model,
                wanted.version,
                error,
            )
        try:
            engine = self._engines.logged(folder / LOGGED, layout.inputs)
        except MemoryError:
            raise
        except Exception as error:  # a flavor's own library may fail in any way
            what = f"the logged model cannot be loaded: {type(error).__name__}: {error}"
            raise _refused(wanted, "BROKEN_ARTIFACT", what) from error
        return self._verified(wanted, policy, manifest, golden, layout, engine)

    def _export(self, wanted: Wanted, folder: Path, layout: Layout) -> Exported:
        """The ONNX export, if it is the one that the registry knows."""
        if not wanted.sha256:
            raise _refused(wanted, "EXPORT_MISSING", "it has no ONNX export")
        try:
            graph = (folder / EXPORT).read_bytes()
        except OSError as error:
            raise _refused(
                wanted, "BROKEN_ARTIFACT", f"{EXPORT} cannot be read: {error}"
            ) from error
        digest = hashlib.sha256(graph).hexdigest()
        if digest != wanted.sha256:
            what = f"its export has SHA-256 {digest}, the registry says {wanted.sha256}"
            raise _refused(wanted, "CHECKSUM_MISMATCH", what)
        try:
            engine = self._engines.exported(graph)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # onnxruntime has no error type of its own
            raise _refused(wanted, "BROKEN_EXPORT", f"{type(error).__name__}: {error}") from error
        if sorted(engine.inputs) != sorted(spec.name for spec in layout.inputs):
            what = f"its export takes {engine.inputs}, its manifest names other inputs"
            raise _refused(wanted, "BROKEN_EXPORT", what)
        return engine

    def _verified(
        self,
        wanted: Wanted,
        policy: ServingPolicy,
        manifest: Mapping[str, Any],
        golden: Mapping[str, Any],
        layout: Layout,
        engine: Engine,
    ) -> ServedModel:
        """Lets an engine answer the golden rows, compares, and warms it."""
        try:
            task, classes = Task(manifest["task"]), tuple(manifest["classes"])
            block = layout.from_rows(golden["rows"])
            expected = np.asarray(golden["probabilities"], dtype=np.float64)
            answers = engine.run(layout.feeds(block))
        except (MemoryError, OSError):  # says nothing about the version
            raise
        except Exception as error:  # anything can be wrong with a file, or with a runtime
            raise _refused(wanted, "BROKEN_ARTIFACT", f"{type(error).__name__}: {error}") from error
        width = len(classes) or 1
        if answers.ndim != 2 or answers.shape[1] != width or not len(answers):
            what = f"answers of shape {answers.shape}, not [rows, {width}]"
            raise _refused(wanted, "BROKEN_ARTIFACT", what)
        self._compare(wanted, answers, expected.reshape(len(expected), -1))
        return ServedModel(
            wanted=wanted,
            task=task,
            classes=classes,
            layout=layout,
            threshold=float(manifest.get("threshold", 0.5)),
            policy=policy,
            fields=_fields(policy, layout),
            engine=engine,
            cost=_warm(engine, layout, block),
            background=block,
            background_output=answers,
            since=datetime.now(UTC),
        )

    def _compare(self, wanted: Wanted, answers: Any, expected: Any) -> None:
        if answers.shape != expected.shape:
            raise _refused(wanted, "GOLDEN_MISMATCH", "its golden answers are of another shape")
        if not np.allclose(answers, expected, rtol=self._tolerance, atol=self._tolerance):
            off = np.abs(answers - expected).max()
            raise _refused(
                wanted, "GOLDEN_MISMATCH", f"it answers its golden rows off by {off:.3g}"
            )


def _check(wanted: Wanted, digest: str) -> None:
    if digest != wanted.artifact_sha256:
        what = f"its files have SHA-256 {digest}, the registry says {wanted.artifact_sha256}"
        raise _refused(wanted, "CHECKSUM_MISMATCH", what)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing where another replica has just removed it."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _last_used(folder: Path) -> int:
    """Nanoseconds since 1970; 0 for what another replica has just removed."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _size(folder: Path) -> int:
    """Bytes of what is there; another replica may be removing it."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.stat(os.path.join(root, name)).st_size
    return size


def _fields(policy: ServingPolicy, layout: Layout) -> frozenset[str]:
    """What a row may hold: an older version may take inputs that its pipeline has dropped since."""
    if not policy.fields:
        return frozenset()
    return frozenset(policy.fields).union(spec.name for spec in layout.inputs)


def _warm(engine: Engine, layout: Layout, many: Block) -> Cost:
    """Runs one row and many, which takes different paths through a runtime, and tells what they cost."""
    one = many.take(np.arange(1))
    short, long = (_quickest(engine, layout, block) for block in (one, many))
    row = max(long - short, 0.01 * long) / max(many.rows - 1, 1)
    return Cost(fixed=max(short - row, 0.1 * short), row=row)


def _quickest(engine: Engine, layout: Layout, block: Block) -> float:
    """Seconds that the best of some runs took: the others met something else."""
    took = []
    for _ in range(WARM_RUNS):
        began = time.perf_counter()
        engine.run(layout.feeds(block))
        took.append(time.perf_counter() - began)
    return min(took)


def _refused(wanted: Wanted, reason: str, what: str) -> EverloopError:
    message = f"{wanted.model} version {wanted.version}: {what}"
    return EverloopError(Kind.PRECONDITION, reason, message, model=wanted.model)
