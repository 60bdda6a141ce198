"""Training a model again from what was recorded with it, to see whether the same comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from everloop_contracts.pipeline import LOWER_IS_BETTER
from everloop_trainer.evaluate import evaluate
from everloop_trainer.families import params_of
from everloop_trainer.folds import folds_of
from everloop_trainer.judge import Fold, judge
from everloop_trainer.ports import Datasets
from everloop_trainer.recipe import Recipe, code_digest, code_revision, environment
from everloop_trainer.rows import prepare

__all__ = ["Outcome", "Records", "Reproduction", "TrialRecord", "reproduce"]


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of a search as the books hold it: parameters as text, metrics with the `budget` it came to."""

    family: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]


class Records(Protocol):
    """Where trainings are recorded."""

    def recipe(self, run_id: str) -> tuple[Recipe, tuple[str, ...]]:
        """What a run's model was made of, and its environment.

        Raises:
            EverloopError: kind not_found: there is no such run, or it has no model.
        """

    def trials(self, run_id: str) -> Sequence[TrialRecord]:
        """Trials that came to an end, oldest first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a training gave.

    Attributes:
        family: of the winner.
        params: of the winner.
        validation: the winner's metric in the search; None where the trials are not looked at.
        metrics: on the holdout.
        onnx_sha256: of the model.
    """

    family: str
    params: dict[str, Any]
    validation: float | None
    metrics: dict[str, float]
    onnx_sha256: str


@dataclass(frozen=True, slots=True)
class Reproduction:
    """A recorded training and its repetition.

    Attributes:
        run_id: the run that was repeated.
        trials: how many were fitted again.
        recorded: what is recorded.
        again: what came out now.
        difference: the largest one between two metrics, those of every trial among them; infinite where one is missing.
        same_winner: whether family and parameters agree.
        same_model: whether the models agree to the bit.
        same_code: whether the same code ran then and now.
        revisions: that code, then and now.
        packages: distributions that differ, as `then → now`.
    """

    run_id: str
    trials: int
    recorded: Outcome
    again: Outcome
    difference: float
    same_winner: bool
    same_model: bool
    same_code: bool
    revisions: tuple[str, str]
    packages: tuple[str, ...]

    def within(self, tolerance: float) -> bool:
        """Whether the winner is the same and no metric differs by more."""
        return self.same_winner and self.difference <= tolerance


SEARCH_THREADS: Final = 1
"""A trial books one processor, and Ray gives its libraries one thread."""


def reproduce(
    records: Records,
    datasets: Datasets,
    run_id: str,
    *,
    trials: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Reproduction:
    """Trains again from the recorded dataset version, seed and parameters.

    The trials are those of the books, not searched for again: what a search tries next depends on which trial ended
    first. Each is fitted to the share of the work at which it ended, and the best of them is the winner.

    Args:
        records: the books.
        datasets: where the dataset version is.
        run_id: MLflow run of the training.
        trials: whether every trial is fitted again, or only the winner.
        progress: told how many trials are done, and of how many.
    """
    recipe, packages = records.recipe(run_id)
    pipeline = recipe.pipeline
    rows = prepare(pipeline, datasets.fetch(recipe.dataset))
    taught, holdout = rows.split(pipeline.training.holdout.fraction)
    winner, difference, count = (recipe.family, recipe.params), 0.0, 0
    validations: tuple[float | None, float | None] = (None, None)
    if trials and (known := records.trials(run_id)):
        folds = folds_of(pipeline, taught)
        fitted: list[Mapping[str, float]] = []
        for number, trial in enumerate(known, start=1):
            with threadpool_limits(SEARCH_THREADS):
                fitted.append(_fit(recipe, trial, folds, rows.problem))
            progress(number, len(known))
        count = len(known)
        difference = max(
            _difference(_judged(trial.metrics), _judged(values))
            for trial, values in zip(known, fitted, strict=True)
        )
        winner, validations = _winner(recipe, known, fitted)
    evaluated = evaluate(pipeline, recipe.dataset, taught, holdout, rows, *winner, incumbent=None)
    return Reproduction(
        run_id=run_id,
        trials=count,
        recorded=Outcome(
            recipe.family, recipe.params, validations[0], recipe.metrics, recipe.onnx_sha256
        ),
        again=Outcome(*winner, validations[1], evaluated.metrics, evaluated.onnx_sha256),
        difference=max(difference, _difference(recipe.metrics, evaluated.metrics)),
        same_winner=winner == (recipe.family, recipe.params),
        same_model=recipe.onnx_sha256 == evaluated.onnx_sha256,
        same_code=recipe.code_digest == code_digest(),
        revisions=(
            _code(recipe.code_revision, recipe.code_digest),
            _code(code_revision(), code_digest()),
        ),
        packages=_changes(packages, environment()),
    )


class _Enough(Exception):
    """The trial has come as far as it did when it was recorded."""


def _fit(
    recipe: Recipe, trial: TrialRecord, folds: tuple[Fold, ...], problem: Any
) -> Mapping[str, float]:
    """The metrics of a trial that is fitted again to the work that it came to."""
    training = recipe.pipeline.training
    last: dict[str, float] = {}

    def report(values: dict[str, float]) -> None:
        last.update(values)
        if values["budget"] >= trial.metrics["budget"]:
            raise _Enough

    try:
        params = params_of(trial.family, trial.params)
        judge(trial.family, params, folds, problem, training.search.metric, training.seed, report)
    except _Enough:
        pass
    return last


def _winner(
    recipe: Recipe, known: Sequence[TrialRecord], fitted: Sequence[Mapping[str, float]]
) -> tuple[tuple[str, dict[str, Any]], tuple[float | None, float]]:
    """The best trial now; its metric as recorded for the recorded winner, and now."""
    metric = recipe.pipeline.training.search.metric
    sign = -1 if metric in LOWER_IS_BETTER else 1
    candidates = [(trial.family, params_of(trial.family, trial.params)) for trial in known]
    recorded = (recipe.family, recipe.params)
    # Among equals the recorded one: which of them came first is not in the books.
    best = max(
        range(len(known)),
        key=lambda index: (sign * fitted[index][metric], candidates[index] == recorded),
    )
    then = next(
        (
            trial.metrics[metric]
            for trial, it in zip(known, candidates, strict=True)
            if it == recorded
        ),
        None,
    )
    return candidates[best], (then, fitted[best][metric])


_COSTS: Final = frozenset({"seconds", "cpu_seconds", "budget"})


def _judged(metrics: Mapping[str, float]) -> dict[str, float]:
    """Without what is no metric of the model."""
    return {name: value for name, value in metrics.items() if name not in _COSTS}


def _difference(then: Mapping[str, float], now: Mapping[str, float]) -> float:
    if set(then) != set(now):
        return float("inf")
    return max((abs(then[name] - now[name]) for name in then if then[name] != now[name]), default=0)


def _code(revision: str, digest: str) -> str:
    return f"{digest[:12]} (commit {revision})" if revision else digest[:12]


def _changes(then: Sequence[str], now: Sequence[str]) -> tuple[str, ...]:
    """Distributions whose version differs."""
    before, after = (dict(item.split("==", 1) for item in lock) for lock in (then, now))
    return tuple(
        f"{name} {before.get(name, 'none')} → {after.get(name, 'none')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    )
