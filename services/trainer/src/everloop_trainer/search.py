"""The search over model families and their parameters: Ray Tune with Optuna's TPE and ASHA.

The data is put into Ray's object store once. Every family's defaults are tried first, then TPE chooses. A search that
was cut off (the trainer or Ray went away) is taken up where its folder says it was.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.searcher import Searcher

from everloop_contracts.pipeline import LOWER_IS_BETTER, TASK_METRICS, Pipeline
from everloop_runtime.errors import EverloopError, Kind
from everloop_trainer.domain import Progress
from everloop_trainer.families import Choice, load_family
from everloop_trainer.folds import folds_of
from everloop_trainer.judge import BUDGET, REDUCTION
from everloop_trainer.rows import Rows
from everloop_trainer.trial import CPU_SECONDS, run_trial, split_config

if TYPE_CHECKING:
    import optuna
    from ray.tune.experiment import Trial

__all__ = [
    "Cluster",
    "Found",
    "SearchFailed",
    "Watcher",
    "Winner",
    "alone",
    "first_points",
    "forget",
    "joined",
    "search",
]

log = logging.getLogger(__name__)

_PROCESS: Final = uuid.uuid4().hex
ANSWER_SECONDS: Final = 5.0
"""Time that the Ray head gets to accept a connection."""


Winner = tuple[str, dict[str, Any]]
"""A family and its parameters."""


class SearchFailed(Exception):
    """No trial came to an end; the message holds the first trial's error."""


@dataclass(frozen=True, slots=True)
class Found:
    """The best trial, how many there were, and the processor time of all."""

    family: str
    params: dict[str, Any]
    metric: float
    trials: int
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a search may use.

    Attributes:
        folder: where Ray Tune keeps the state of searches.
        trial_cpus: CPUs of the Ray cluster that one trial books.
        trial_gpus: GPUs of the Ray cluster that one trial books.
    """

    folder: Path
    trial_cpus: float = 1.0
    trial_gpus: float = 0.0


class Watcher(Protocol):
    """Who follows a search."""

    def check(self) -> None:
        """Asked all the time.

        Raises:
            Cancelled: the search is to end; its trials are stopped.
        """

    def progress(self, progress: Progress) -> None:
        """Told after every trial."""

    def trial(
        self,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """Told what one trial was and gave; `curve` holds its metrics at each share of the work, named `budget`."""


def search(
    pipeline: Pipeline,
    rows: Rows,
    training_id: str,
    cluster: Cluster,
    watcher: Watcher,
    before: Winner | None = None,
) -> Found:
    """Searches for the best family and parameters; Ray is initialised by the caller.

    Args:
        pipeline: names the families and the budget.
        rows: the training part.
        training_id: names the search: a repeat resumes it.
        cluster: what it may use.
        watcher: told about trials.
        before: what won before, which is tried first; None where nothing did, or it is not to be.

    Raises:
        SearchFailed: no trial came to an end.
        Cancelled: the watcher said so.
    """
    spec = pipeline.training.search
    trainable = tune.with_resources(
        tune.with_parameters(
            run_trial,
            folds=folds_of(pipeline, rows),
            problem=rows.problem,
            metric=spec.metric,
            seed=pipeline.training.seed,
        ),
        {"cpu": cluster.trial_cpus, "gpu": cluster.trial_gpus},
    )
    mode = "min" if spec.metric in LOWER_IS_BETTER else "max"
    follow = _Follow(watcher, spec.metric, mode)
    tuner = _tuner(pipeline, trainable, training_id, cluster, follow, before)
    results = tuner.fit()
    folder = cluster.folder / training_id
    done = [item for item in results if item.metrics and spec.metric in item.metrics]
    if not done:
        error = next((str(item.error) for item in results if item.error), "no trial was started")
        shutil.rmtree(folder, ignore_errors=True)
        raise SearchFailed(error)
    sign = 1 if mode == "max" else -1
    # Trials that ASHA stopped were judged on part of the work; they may still be the best.
    best = max(done, key=lambda item: sign * float(item.metrics[spec.metric]))
    family, params = split_config(best.config)
    spent = sum(float((item.metrics or {}).get(CPU_SECONDS, 0.0)) for item in results)
    return Found(family, params, float(best.metrics[spec.metric]), len(results), spent)


class _BoundedSearch(OptunaSearch):
    """Optuna that suggests nothing new when the time is over; what runs then comes to its end.

    Time in which no process searched does not count: it is kept with the state of the search.
    """

    def __init__(self, *args: Any, seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seconds = seconds
        self._spent = 0.0
        self._asked = ("", 0.0)

    def suggest(self, trial_id: str) -> Any:
        process, last = self._asked
        self._asked = (_PROCESS, time.monotonic())
        if process == _PROCESS:
            self._spent += self._asked[1] - last
        if self._spent > self._seconds:
            return Searcher.FINISHED
        return super().suggest(trial_id)


def _space(families: tuple[str, ...], trial: optuna.Trial) -> None:
    """The search space, defined by running it: a family's parameters exist only where it is chosen."""
    name = trial.suggest_categorical("family", list(families))
    for key, item in load_family(name).space.items():
        if isinstance(item, Choice):
            trial.suggest_categorical(f"{name}.{key}", list(item.values))
        elif item.whole:
            trial.suggest_int(f"{name}.{key}", int(item.low), int(item.high), log=item.log)
        else:
            trial.suggest_float(f"{name}.{key}", item.low, item.high, log=item.log)


def first_points(families: tuple[str, ...], before: Winner | None) -> list[dict[str, Any]]:
    """What is tried before the search has learned anything: what won before, then every family's defaults.

    What won before is left out where it lies outside of the space, which another version of the code may have drawn
    otherwise.
    """
    points = [
        (name, {k: v.default for k, v in load_family(name).space.items()}) for name in families
    ]
    if before and before[0] in families and before not in points and _inside(*before):
        points.insert(0, before)
    return [
        {"family": name, **{f"{name}.{key}": value for key, value in params.items()}}
        for name, params in points
    ]


def _inside(name: str, params: Mapping[str, Any]) -> bool:
    space = load_family(name).space
    return set(params) == set(space) and all(
        params[key] in item.values
        if isinstance(item, Choice)
        else item.low <= params[key] <= item.high
        for key, item in space.items()
    )


def _tuner(
    pipeline: Pipeline,
    trainable: Callable[..., Any],
    training_id: str,
    cluster: Cluster,
    follow: tune.Callback,
    before: Winner | None,
) -> tune.Tuner:
    """A new search, or the one of this name taken up again."""
    folder = cluster.folder / training_id
    # Tune adds loggers of its own, of which that for TensorBoard imports PyTorch for seconds; nobody reads them.
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    if folder.exists():
        try:
            tuner = tune.Tuner.restore(
                str(folder), trainable, resume_unfinished=True, restart_errored=True
            )
            # Callbacks are not part of the state: the restored one belongs to a process that is gone.
            tuner._local_tuner._run_config.callbacks = [follow]
            log.info("search %s is taken up again", training_id)
            return tuner
        except Exception as error:
            log.warning("search %s starts afresh: %s", training_id, error)
            shutil.rmtree(folder)
    training = pipeline.training
    spec = training.search
    mode = "min" if spec.metric in LOWER_IS_BETTER else "max"
    algorithm = _BoundedSearch(
        partial(_space, training.families),
        metric=spec.metric,
        mode=mode,
        points_to_evaluate=first_points(training.families, before)[: spec.trials],
        seed=training.seed,
        seconds=spec.time_budget.total_seconds(),
    )
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=spec.metric,
            mode=mode,
            search_alg=algorithm,
            scheduler=ASHAScheduler(
                time_attr="budget", max_t=BUDGET, grace_period=1, reduction_factor=REDUCTION
            )
            if spec.early_stopping
            else FIFOScheduler(),
            num_samples=spec.trials,
            max_concurrent_trials=spec.concurrency,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=training_id,
            storage_path=str(cluster.folder.absolute()),
            callbacks=[follow],
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )


class _Follow(tune.Callback):
    """Tells the watcher about trials that end, and asks it whether to go on."""

    def __init__(self, watcher: Watcher, metric: str, mode: str) -> None:
        self._watcher = watcher
        self._metric = metric
        self._sign = 1 if mode == "max" else -1
        self._curves: dict[str, list[dict[str, float]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the watcher: Tune pickles its callbacks, and a database cannot be."""
        return {**vars(self), "_watcher": None}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._watcher.check()  # what it raises makes Tune stop all trials, and comes out of `fit`

    def on_trial_result(
        self,
        iteration: int,
        trials: list[Trial],
        trial: Trial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        self._curves.setdefault(trial.trial_id, []).append(_metrics(result))

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._tell(trials, trial, failed=False)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._tell(trials, trial, failed=True)

    def _tell(self, trials: list[Trial], trial: Trial, failed: bool) -> None:
        family, params = split_config(trial.config)
        last = trial.last_result or {}
        values = _metrics(last)
        values["seconds"] = float(last.get("time_total_s", 0.0))
        curve = self._curves.pop(trial.trial_id, [])
        self._watcher.trial(trial.trial_id, family, params, values, failed, curve)
        ended = [item for item in trials if item.is_finished() or item is trial]
        judged = [item for item in ended if self._metric in (item.last_result or {})]
        best = max(
            judged, key=lambda item: self._sign * item.last_result[self._metric], default=None
        )
        self._watcher.progress(
            Progress(
                len(ended),
                float(best.last_result[self._metric]) if best else None,
                str(best.config["family"]) if best else "",
            )
        )


_METRICS: Final = frozenset({*chain(*TASK_METRICS.values()), "budget", CPU_SECONDS})


def _metrics(result: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in result.items() if name in _METRICS}


def forget(training_id: str, cluster: Cluster) -> None:
    """Removes the state of a search whose winner is logged."""
    shutil.rmtree(cluster.folder / training_id, ignore_errors=True)


OBJECT_STORE_BYTES: Final = 512 * 1024 * 1024
"""What a Ray of its own keeps in memory of the rows."""


@contextmanager
def alone() -> Iterator[None]:
    """Runs a Ray of its own for the time of the block, with room for one trial at a time."""
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.WARNING,
        object_store_memory=OBJECT_STORE_BYTES,
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Joins the Ray cluster for the time of the block.

    No longer than that: the head may be replaced between two trainings, and Ray aborts the process of a driver that
    asks the new one.

    Raises:
        EverloopError: kind unavailable, reason RAY_UNAVAILABLE: no head answers.
    """
    try:
        if ":" in address:
            # Ray itself tries for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=ANSWER_SECONDS).close()
        ray.init(
            address=address,
            namespace="everloop",
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except OSError as error:  # ConnectionError is one
        raise EverloopError(
            Kind.UNAVAILABLE, "RAY_UNAVAILABLE", f"no Ray head answers at {address}: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
