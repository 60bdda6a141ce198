"""Brings what is served to what the registry says should be, and remembers the last good set on disk."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from everloop_inference.domain import EngineKind, ServingPolicy, Wanted
from everloop_inference.load import Loader
from everloop_inference.metrics import LOAD_FAILURES, REGISTRY_UP, SERVED_VERSION, SLOW, SWAPS
from everloop_inference.ports import Registry
from everloop_inference.swap import Models
from everloop_runtime.errors import EverloopError

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

FIRST_RETRY_SECONDS = 1.0


class Reconciler:
    """Looks at the registry, loads what is new beside what serves, and swaps.

    What cannot be loaded is tried again with growing pauses while the version before it serves. A model that the
    registry no longer names goes on serving: an empty registry is more likely a mishap than a wish.
    """

    def __init__(
        self,
        registry: Registry,
        loader: Loader,
        models: Models,
        policies: Mapping[str, ServingPolicy],
        state: Path,
        retry_max_seconds: float = 60.0,
        share: Callable[[Sequence[Wanted]], Sequence[Wanted]] = lambda production: production,
    ) -> None:
        """Takes what it looks at and what it changes.

        `state` is the file that remembers; `share` says which of the registry's models are to serve here.
        """
        self._share = share
        self._registry = registry
        self._loader = loader
        self._models = models
        self._policies = policies
        self._state = state
        self._retry_max = retry_max_seconds
        self._retry: dict[Wanted, tuple[float, float]] = {}
        self._unnamed: frozenset[str] = frozenset()
        self._reachable = True

    def restore(self) -> None:
        """Lets the last good set serve again, from this machine's disk alone."""
        for wanted, previous in self._remembered():
            if not self._share([wanted]):
                continue
            if not self._load(wanted, previous.version if previous else 0) and previous:
                self._load(previous)

    def once(self) -> None:
        """Does everything that can be done now; whatever fails is logged and tried again by a later call."""
        try:
            production = self._share(self._registry.production())
        except EverloopError as error:
            REGISTRY_UP.set(0)
            if self._reachable:
                log.warning("the registry does not answer, what serves goes on: %s", error)
            self._reachable = False
            return
        if not self._reachable:
            log.info("the registry answers again")
        REGISTRY_UP.set(1)
        self._reachable = True
        self._mention_unnamed(frozenset(wanted.model for wanted in production))
        self._retry = {wanted: due for wanted, due in self._retry.items() if wanted in production}
        for wanted in production:
            serving = self._models.serving.get(wanted.model)
            if serving is None or serving.wanted != wanted:
                replaced = serving.wanted if serving else None
                if self._load(wanted):
                    self._remember(wanted, replaced)

    def run(self, stopping: threading.Event, seconds: float) -> None:
        """Calls `once` every so many seconds until told to stop."""
        while not stopping.wait(seconds):
            try:
                self.once()
            except Exception:
                log.exception("reconciling failed, what serves goes on")

    def _load(self, wanted: Wanted, previous_version: int = 0) -> bool:
        due, pause = self._retry.get(wanted, (0.0, FIRST_RETRY_SECONDS))
        if time.monotonic() < due:
            return False
        began = time.monotonic()
        try:
            model = self._loader.load(wanted, self._policies.get(wanted.model, ServingPolicy()))
        except Exception as error:
            reason = error.reason if isinstance(error, EverloopError) else type(error).__name__
            LOAD_FAILURES.labels(wanted.model, reason).inc()
            serving = self._models.serving.get(wanted.model)
            log.error(
                "%s version %d cannot serve (%s), %s: %s",
                wanted.model,
                wanted.version,
                reason,
                f"version {serving.version} goes on" if serving else "no version serves",
                error,
                exc_info=not isinstance(error, EverloopError),
            )
            self._retry[wanted] = time.monotonic() + pause, min(pause * 2, self._retry_max)
            return False
        self._retry.pop(wanted, None)
        model = self._models.swap(replace(model, previous_version=previous_version))
        SERVED_VERSION.labels(model.name).set(model.version)
        SLOW.labels(model.name).set(model.engine.kind is not EngineKind.ONNX)
        SWAPS.labels(model.name).inc()
        log.info(
            "%s version %d serves, before it version %d; loaded in %.2f s",
            model.name,
            model.version,
            model.previous_version,
            time.monotonic() - began,
        )
        return True

    def _mention_unnamed(self, named: frozenset[str]) -> None:
        unnamed = frozenset(self._models.serving) - named
        if unnamed - self._unnamed:
            log.warning("the registry no longer names %s; served on", ", ".join(sorted(unnamed)))
        self._unnamed = unnamed

    def _remember(self, wanted: Wanted, replaced: Wanted | None) -> None:
        """Writes the set down; keeps the artifact of the version before, which a rollback asks for."""
        before = {entry.model: previous for entry, previous in self._remembered()}
        before[wanted.model] = replaced or before.get(wanted.model)
        kept = {
            name: (model.wanted, before.get(name)) for name, model in self._models.serving.items()
        }
        entries = [
            {"serving": asdict(serving), "previous": asdict(previous) if previous else None}
            for _, (serving, previous) in sorted(kept.items())
        ]
        part = self._state.with_suffix(f".{threading.get_ident()}.part")
        try:
            self._state.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"models": entries}, indent=2))
            part.rename(self._state)
        except OSError as error:
            log.error("what serves cannot be remembered: %s", error)
            return
        self._loader.prune({wanted for pair in kept.values() for wanted in pair if wanted})

    def _remembered(self) -> list[tuple[Wanted, Wanted | None]]:
        try:
            entries = json.loads(self._state.read_text())["models"]
            return [
                (
                    Wanted(**entry["serving"]),
                    Wanted(**entry["previous"]) if entry["previous"] else None,
                )
                for entry in entries
            ]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.error("%s cannot be read, it is made anew: %s", self._state, error)
            return []
