"""Brings what is served to what the registry says should be, and remembers the last good set on disk."""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from everloop_inference.domain import (
    EngineKind,
    Production,
    ServedModel,
    ServingPolicy,
    Strategy,
    Wanted,
)
from everloop_inference.metrics import REGISTRY_UP, SERVED_VERSION, SLOW, SWAPS
from everloop_inference.models.attempts import Attempts
from everloop_inference.models.load import Loader
from everloop_inference.models.swap import Models
from everloop_inference.ports import Registry
from everloop_inference.rollouts.follow import Rollouts
from everloop_runtime.errors import EverloopError

__all__ = ["Reconciler"]

log = logging.getLogger(__name__)

WATCH_AGAIN_SECONDS = (0.5, 3.0)
"""Least and longest pause before the registry is asked again to tell of changes."""


class Reconciler:
    """Looks at the registry, loads what is new beside what serves, and swaps.

    What cannot be loaded is tried again with growing pauses while the version before it serves. A model that the
    registry no longer names goes on serving: an empty registry is more likely a mishap than a wish.

    A version on trial is loaded in the same way and serves beside the other. When it is promoted it is here already.
    It is not remembered: after a restart with the registry away only what is in Production serves.
    """

    def __init__(
        self,
        registry: Registry,
        loader: Loader,
        models: Models,
        policies: Mapping[str, ServingPolicy],
        state: Path,
        replica: str,
        retry_max_seconds: float = 60.0,
        downloads: int = 4,
        share: Callable[[Production], Production] = lambda production: production,
    ) -> None:
        """Takes what it looks at and what it changes.

        Args:
            registry: says what should be served.
            loader: gets it.
            models: what serves.
            policies: what the pipelines say about serving.
            state: the file that remembers.
            replica: unique name of this life of the replica.
            retry_max_seconds: longest pause before another attempt to load what could not be loaded.
            downloads: artifacts that are downloaded at once.
            share: says what of the registry's answer is to serve here.
        """
        self._share = share
        self._registry = registry
        self._loader = loader
        self._models = models
        self._state = state
        self._due = threading.Event()
        self._attempts = Attempts(loader, policies, retry_max_seconds, downloads, self.wake)
        self._rollouts = Rollouts(registry, self._attempts, models, replica)
        self._answering: frozenset[Wanted] = frozenset()
        self._named: frozenset[Wanted] = frozenset()
        self._unnamed: frozenset[str] = frozenset()
        self._reachable = True

    def restore(self) -> None:
        """Lets the last good set serve again, from this machine's disk alone."""
        for wanted, previous in self._remembered():
            if not self._share(Production([wanted])).versions:
                continue
            model = self._attempts.cached(wanted)
            if model is not None:
                self._swap(replace(model, previous_version=previous.version if previous else 0))
            elif previous and (model := self._attempts.cached(previous)):
                self._swap(model)

    def once(self) -> None:
        """Does everything that can be done now; what is on its way or fails is left to a later call."""
        if self._look() and self._rollouts.report():
            self._look()

    def _look(self) -> bool:
        """Makes what serves what the registry says; returns whether the registry said anything."""
        try:
            production = self._share(self._registry.production())
        except EverloopError as error:
            REGISTRY_UP.set(0)
            if self._reachable:
                log.warning("the registry does not answer, what serves goes on: %s", error)
            self._reachable = False
            return False
        if not self._reachable:
            log.info("the registry answers again")
        REGISTRY_UP.set(1)
        self._reachable = True
        self._mention_unnamed(frozenset(wanted.model for wanted in production.versions))
        candidates = [trial.candidate for trial in production.trials]
        answering = (on.candidate for on in production.trials if on.strategy is not Strategy.SHADOW)
        self._answering = frozenset(production.versions).union(answering)
        self._named = self._answering.union(candidates)
        self._attempts.forget(keep=self._named)
        before = self._models.serving
        for wanted in production.versions:
            serving = before.get(wanted.model)
            if serving is None or serving.wanted != wanted:
                replaced = serving.wanted if serving else None
                if self._promote(wanted):
                    self._remember(wanted, replaced)
        if self._rollouts.follow(production.trials):
            self._prune()
        return True

    def watch(self, stopping: threading.Event) -> None:
        """Wakes `run` when the registry tells of a change, until told to stop; `run` sees the others later."""
        while not stopping.is_set():
            try:
                for _ in self._registry.changes():
                    self.wake()
            except EverloopError as error:
                log.debug("the registry does not tell of changes: %s", error)
            stopping.wait(random.uniform(*WATCH_AGAIN_SECONDS))

    def wake(self) -> None:
        """Lets `run` go on at once; for any thread."""
        self._due.set()

    def run(self, stopping: threading.Event, seconds: float, settled: threading.Event) -> None:
        """Calls `once` now, every so many seconds and when woken, until told to stop, of which it must be woken.

        Says when no version that is to answer is on its way any more: a shadow may come later, but a candidate has the
        callers whom it has on other replicas.
        """
        while True:
            self._due.clear()
            try:
                self.once()
            except Exception:
                log.exception("reconciling failed, what serves goes on")
            if not self._attempts.downloading(self._answering):
                settled.set()
            if not stopping.is_set():
                self._due.wait(seconds)
            if stopping.is_set():
                return

    def _promote(self, wanted: Wanted) -> bool:
        """Lets a version serve that is in Production now: the one on trial as it is, any other when it is loaded."""
        on = self._models.trials.get(wanted.model)
        if on is not None and on.candidate.wanted == wanted:
            self._swap(on.candidate)
            return True
        return self._load(wanted)

    def _load(self, wanted: Wanted) -> bool:
        serving = self._models.serving.get(wanted.model)
        meanwhile = f"version {serving.version} goes on" if serving else "no version serves"
        model = self._attempts.load(wanted, meanwhile)
        if model is None:
            return False
        self._swap(model)
        return True

    def _swap(self, model: ServedModel) -> None:
        model = self._models.swap(model)
        SERVED_VERSION.labels(model.name).set(model.version)
        SLOW.labels(model.name).set(model.engine.kind is not EngineKind.ONNX)
        SWAPS.labels(model.name).inc()
        log.info(
            "%s version %d serves, before it version %d",
            model.name,
            model.version,
            model.previous_version,
        )

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
        self._prune()

    def _prune(self) -> None:
        """Keeps the artifacts of what serves, of what served before it, and of what the registry names."""
        kept = {wanted for pair in self._remembered() for wanted in pair if wanted}
        serving = {model.wanted for model in self._models.serving.values()}
        self._loader.prune(kept | serving | self._named)

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
