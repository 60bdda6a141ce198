"""One training, from a dataset version to a model in MLflow."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Dataset, Progress, Trained, Training
from everloop_trainer.evaluate import Evaluated, evaluate
from everloop_trainer.ports import FILES, SCORES, Artifacts, Datasets, Production, Tracking
from everloop_trainer.recipe import (
    ENVIRONMENT,
    RECIPE,
    Recipe,
    code_digest,
    code_revision,
    environment,
)
from everloop_trainer.rows import Rows, prepare
from everloop_trainer.search import Cluster, Found, Watcher, Winner, forget, search

__all__ = ["Train"]

log = logging.getLogger(__name__)

Search = Callable[[Pipeline, Rows, str, Cluster, Watcher, Winner | None], Found]


class Train:
    """The use case: everything that happens between a queued training and its announcement."""

    def __init__(
        self,
        datasets: Datasets,
        production: Production,
        tracking: Tracking,
        cluster: Cluster,
        joined: Callable[[], AbstractContextManager[None]],
        search: Search = search,
    ) -> None:
        """Takes its ports; inside of `joined` the Ray cluster can be used."""
        self._datasets = datasets
        self._production = production
        self._tracking = tracking
        self._cluster = cluster
        self._joined = joined
        self._search = search

    def run(
        self,
        pipeline: Pipeline,
        training: Training,
        started: Callable[[str, int], None],
        progress: Callable[[Progress], None],
        trial_ended: Callable[[str, bool], None],
        check: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Trains. Repeated after a crash it goes on where it can, and never logs a second model.

        Args:
            pipeline: as declared.
            training: what is to be done.
            started: told the MLflow run and the number of trials.
            progress: told after every trial.
            trial_ended: told the family of each trial and whether it failed.
            check: called again and again; raises Cancelled to end the training.

        Raises:
            TrainingError: the data does not allow a model.
            Cancelled: `check` raised it; no trial of it runs any more.
            EverloopError: of a kind that waiting mends: something that it needs is away; repeat it later.
        """
        began, worked = time.monotonic(), time.process_time()
        run_id = self._tracking.open_run(training)
        started(run_id, pipeline.training.search.trials)
        if done := self._tracking.finished(run_id):
            return done
        rows = prepare(pipeline, self._datasets.fetch(training.dataset))
        taught, holdout = rows.split(pipeline.training.holdout.fraction)
        watcher = _Books(self._tracking, run_id, progress, trial_ended, check)
        check()
        before = (
            self._tracking.winner_before(training) if pipeline.training.search.warm_start else None
        )
        with self._joined():
            found = self._search(pipeline, taught, training.id, self._cluster, watcher, before)
        searched = time.monotonic()
        log.info("searched %d trials in %.1f s", found.trials, searched - began)
        check()
        incumbent = self._production.incumbent(pipeline.name)
        evaluated = evaluate(
            pipeline,
            training.dataset,
            taught,
            holdout,
            rows,
            found.family,
            found.params,
            incumbent,
        )
        log.info("evaluated in %.1f s", time.monotonic() - searched)
        check()
        trained = Trained(
            run_id=run_id,
            model_uri="",
            family=found.family,
            metrics=evaluated.metrics,
            baseline_version=evaluated.baseline_version,
            baseline_metrics=evaluated.baseline_metrics,
            export_difference=evaluated.export_difference,
            onnx_sha256=evaluated.onnx_sha256,
            seconds=time.monotonic() - began,
            training_rows=len(rows),
            holdout_rows=len(holdout),
            intervals=evaluated.intervals,
            slices=evaluated.slices,
            model_bytes=evaluated.model_bytes,
            p99_seconds=evaluated.p99_seconds,
            cpu_seconds=found.cpu_seconds + time.process_time() - worked,
            threshold=evaluated.threshold,
            scores_path=f"{FILES}/{SCORES}",
            gains=evaluated.gains,
            signature=evaluated.signature,
            baseline_signature=evaluated.baseline_signature,
        )
        trained = self._tracking.log_model(
            run_id,
            pipeline,
            found.params,
            _with_recipe(pipeline, training.dataset, found, evaluated),
            trained,
        )
        forget(training.id, self._cluster)
        return dataclasses.replace(trained, seconds=time.monotonic() - began)

    def give_up(self, training: Training) -> None:
        """Shows in the books that a training has failed for good; books that cannot be written change nothing."""
        try:
            self._tracking.fail(training)
        except Exception:
            log.exception("the run of training %s is not marked as failed", training.id)

    def cancel(self, training: Training) -> None:
        """Removes what a training that was cancelled has left, and shows in the books that it was; safe to repeat.

        Books that cannot be written change nothing.
        """
        forget(training.id, self._cluster)
        try:
            self._tracking.kill(training)
        except Exception:
            log.exception("the run of training %s is not marked as killed", training.id)


def _with_recipe(
    pipeline: Pipeline, dataset: Dataset, found: Found, evaluated: Evaluated
) -> Artifacts:
    """The artifacts, and what it takes to make them again."""
    recipe = Recipe(
        pipeline,
        dataset,
        found.family,
        found.params,
        evaluated.metrics,
        evaluated.onnx_sha256,
        code_digest(),
        code_revision(),
    )
    lock = "".join(f"{item}\n" for item in environment())
    files = {RECIPE: recipe.to_json(), ENVIRONMENT: lock.encode()}
    made = evaluated.artifacts
    return dataclasses.replace(made, files={**made.files, **files})


class _Books:
    """Writes trials down as they end. Books that cannot be written never end a search."""

    def __init__(
        self,
        tracking: Tracking,
        run_id: str,
        progress: Callable[[Progress], None],
        trial_ended: Callable[[str, bool], None],
        check: Callable[[], None],
    ) -> None:
        self.check = check
        self._tracking = tracking
        self._run_id = run_id
        self._progress = progress
        self._trial_ended = trial_ended

    def progress(self, progress: Progress) -> None:
        self._progress(progress)

    def trial(
        self,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        self._trial_ended(family, failed)
        try:
            self._tracking.log_trial(self._run_id, trial_id, family, params, metrics, failed, curve)
        except Exception:
            log.exception("trial %s is not in MLflow", trial_id)
