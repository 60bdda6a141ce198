"""Versions on trial: puts candidates beside what serves, and tells the registry what both do."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence

from everloop_inference.domain import ArmStats, Trial
from everloop_inference.models.attempts import Attempts
from everloop_inference.models.swap import Models
from everloop_inference.ports import Registry, Report
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["Rollouts"]

log = logging.getLogger(__name__)


class Rollouts:
    """Follows the registry's trials; everything here is done by the thread that reconciles."""

    def __init__(
        self, registry: Registry, attempts: Attempts, models: Models, replica: str
    ) -> None:
        """Takes who is told, what loads candidates, what it changes, and what this life of the replica is called."""
        self._registry = registry
        self._attempts = attempts
        self._models = models
        self._replica = replica
        self._sequence = itertools.count(1)
        self._listed: Sequence[Trial] = ()
        self._ended: frozenset[str] = frozenset()
        self._unheard: frozenset[str] = frozenset()

    def follow(self, trials: Sequence[Trial]) -> bool:
        """Takes back what is no longer on trial and begins what is; returns whether something was taken back."""
        self._listed = trials
        listed = frozenset(trial.rollout for trial in trials)
        self._ended &= listed
        self._unheard &= listed
        over = [name for name, on in self._models.trials.items() if on.trial not in trials]
        for name in over:
            self._models.end(name)
            log.info("the trial beside version %d of %s is over", self._version(name), name)
        running = self._models.trials
        for trial in trials:
            # A candidate is compared with the version that the registry means, or not at all.
            if trial.model not in running and self._version(trial.model) == trial.baseline:
                self._begin(trial)
        return bool(over)

    def report(self) -> bool:
        """Tells the registry about every trial; returns whether it said that one has ended."""
        running = self._models.trials
        ended = False
        for trial in self._listed:
            if trial.rollout in self._ended:
                continue
            on = running.get(trial.model)
            failure = ""
            candidate = baseline = ArmStats()
            if on is not None and on.trial == trial:
                candidate, baseline = on.candidate_arm.stats(), on.baseline_arm.stats()
            elif not (failure := self._attempts.lasting_failure(trial.candidate)):
                continue
            number = next(self._sequence)
            report = Report(trial.rollout, self._replica, number, candidate, baseline, failure)
            try:
                if not self._registry.report(report):
                    log.info("rollout %s of %s has ended", trial.rollout, trial.model)
                    self._ended |= {trial.rollout}
                    ended = True
                self._unheard -= {trial.rollout}
            except EverloopError as error:
                # Totals go again with the next report: nothing is lost.
                if trial.rollout not in self._unheard:
                    log.warning("rollout %s cannot be reported: %s", trial.rollout, error)
                self._unheard |= {trial.rollout}
                if error.kind is Kind.UNAVAILABLE:
                    break
        return ended

    def _begin(self, trial: Trial) -> None:
        candidate = self._attempts.load(
            trial.candidate, f"its trial does not begin and version {trial.baseline} goes on"
        )
        if candidate is None:
            return
        self._models.begin(trial, candidate)
        log.info(
            "%s version %d is on trial beside version %d: %s, %g %%, rollout %s",
            trial.model,
            candidate.version,
            trial.baseline,
            trial.strategy,
            trial.percent,
            trial.rollout,
        )

    def _version(self, name: str) -> int:
        model = self._models.serving.get(name)
        return model.version if model else 0
