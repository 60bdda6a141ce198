"""What Ray Tune costs beside the trials themselves, and what ASHA saves.

A search of the trainer's own that stops no trial, on a Ray head of this machine; then the very trials that it made in a
bare loop of joblib on as many processes, which is told to start them and then finds them there; then a search that
stops trials by ASHA.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import mlflow  # noqa: F401 - Tune asks for it, and the trainer has it
import numpy as np
import pyarrow as pa
import ray
from joblib import Parallel, delayed, parallel_config  # type: ignore[import-untyped]
from joblib.externals.loky import get_reusable_executor  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from ray._private.internal_api import node_stats

from bench.flights_model import taught
from bench.report import Result, load_before, write
from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Progress
from everloop_trainer.families import Problem, load_family
from everloop_trainer.folds import folds_of
from everloop_trainer.judge import BUDGET, Fold, judge
from everloop_trainer.rows import Rows
from everloop_trainer.search import Cluster, search
from everloop_trainer.trial import NICENESS

ROWS = 20_000
"""Of which three quarters teach: a whole trial takes one to two seconds on a core that has nothing else to do."""
TRIALS = 32
ROUNDS = 3
MIB = 2**20
FAMILY = "hist_gradient_boosting"
STORED = (5_000, 10_000, 20_000)
"""Rows of searches that are made for what they leave in the object store."""
STORED_TRIALS = 4
LIMIT = 1.15
"""Wall time that the search may take, as a multiple of the bare loop's."""


class Run(NamedTuple):
    """One search, or one loop: wall seconds, the best ROC AUC, trials stopped early, seconds of a trial in a loop."""

    seconds: float
    metric: float
    stopped: int
    one: float


class Notes:
    """Writes the trials of a search down."""

    def __init__(self) -> None:
        self.trials: list[Mapping[str, Any]] = []
        self.stopped = 0
        self.stored = 0
        """Bytes that Ray's object store held at most when a trial ended."""

    def check(self) -> None:
        """See `search.Watcher`."""

    def progress(self, progress: Progress) -> None:
        """See `search.Watcher`."""
        print(f"\r{progress.trials_done} trials", end="", file=sys.stderr)

    def trial(
        self,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        """See `search.Watcher`."""
        self.trials.append(dict(params))
        self.stored = max(self.stored, _stored())
        self.stopped += metrics["budget"] < BUDGET


def _stored() -> int:
    """Bytes that the object store of this machine's Ray holds."""
    (node,) = ray.nodes()
    said = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False)
    return int(said.store_stats.object_store_bytes_used)


def run(
    params: Mapping[str, Any], folds: tuple[Fold, ...], problem: Problem, seed: int
) -> tuple[float, float]:
    """One trial in a worker of joblib: its ROC AUC and the seconds that it took."""
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), NICENESS))
    began, last = time.perf_counter(), 0.0

    def report(values: dict[str, float]) -> None:
        nonlocal last
        last = values["roc_auc"]

    judge(FAMILY, params, folds, problem, "roc_auc", seed, report)
    return last, time.perf_counter() - began


def bare(
    trials: Sequence[Mapping[str, Any]], pipeline: Pipeline, rows: Rows, processes: int
) -> tuple[float, float, float]:
    """Wall seconds of all trials in a loop, the best metric, and the median seconds of one.

    New processes import what trials need at their first call, as the search's do; a second call finds it there.
    """
    with parallel_config("loky", n_jobs=processes, inner_max_num_threads=1):
        began = time.perf_counter()
        folds = folds_of(pipeline, rows)
        seed = pipeline.training.seed
        done = Parallel()(delayed(run)(trial, folds, rows.problem, seed) for trial in trials)
        taken = time.perf_counter() - began
    metrics, seconds = zip(*done, strict=True)
    return taken, max(metrics), float(np.median(seconds))


def searched(pipeline: Pipeline, rows: Rows, processes: int) -> tuple[float, float, Notes]:
    """Wall seconds of the search, its best metric and its trials."""
    notes = Notes()
    ray.init(num_cpus=processes, include_dashboard=False, log_to_driver=False)
    try:
        # The head's first workers are there, as they are in the platform's.
        worker = ray.remote(lambda: time.sleep(0.1))
        ray.get([worker.remote() for _ in range(processes)])
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            found = search(pipeline, rows, "bench", Cluster(Path(folder)), notes)
            taken = time.perf_counter() - began
    finally:
        ray.shutdown()
    return taken, found.metric, notes


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-trainer", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--stored",
        type=int,
        nargs="+",
        default=STORED,
        help="rows of searches whose data are measured",
    )
    parser.add_argument("--no-publish", action="store_true", help="leave docs/ as they are")
    options = parser.parse_args()
    load = load_before()
    load_family(FAMILY)  # the trainer, whose search it is, has long imported it
    sample = taught()
    every = Rows(
        pa.table({"row": np.arange(len(sample.target))}),
        sample.feeds,
        sample.target,
        ("false", "true"),
        sample.problem,
    )
    rows = every.part(0, options.rows)
    settings = {"concurrency": options.processes, "time_budget": "1h"}

    def pipeline_of(early_stopping: bool, trials: int = options.trials) -> Pipeline:
        declared = sample.pipeline.model_dump(by_alias=True, mode="json")
        declared["training"] |= {"families": [FAMILY]}
        declared["training"]["search"] |= {
            **settings,
            "trials": trials,
            "early_stopping": early_stopping,
        }
        return Pipeline.model_validate(declared)

    whole, stopping = pipeline_of(False), pipeline_of(True)
    runs: dict[str, list[Run]] = {}
    for number in range(options.rounds):
        seconds, metric, notes = searched(whole, rows, options.processes)
        runs.setdefault("search, no trial stopped", []).append(
            Run(seconds, metric, notes.stopped, 0.0)
        )
        # Processes of an earlier round would be there already.
        get_reusable_executor().shutdown(wait=True)
        for what in ("joblib, its trials", "joblib, its processes there"):
            seconds, metric, one = bare(notes.trials, whole, rows, options.processes)
            runs.setdefault(what, []).append(Run(seconds, metric, 0, one))
        seconds, metric, notes = searched(stopping, rows, options.processes)
        runs.setdefault("search with ASHA", []).append(Run(seconds, metric, notes.stopped, 0.0))
        done = {what: round(found[-1].seconds, 1) for what, found in runs.items()}
        print(f"\nround {number + 1} of {options.rounds}: {done}", file=sys.stderr)
    figures = [
        {
            "what": what,
            "trials": options.trials,
            "stopped early": round(median(run.stopped for run in found)),
            "seconds": round(median(run.seconds for run in found), 2),
            "best ROC AUC": round(median(run.metric for run in found), 5),
        }
        for what, found in runs.items()
    ]
    stored = []
    for count in options.stored:
        few = pipeline_of(True, STORED_TRIALS)
        _, _, left = searched(few, every.part(0, count), options.processes)
        stored.append(
            {
                "rows": count,
                "object store MiB": round(left.stored / MIB, 2),
                "bytes a row": round(left.stored / count),
            }
        )
    of = [runs[what] for what in runs]
    rounds = list(zip(*of, strict=True))
    ratios = {
        "search_vs_bare": median(s.seconds / b.seconds for s, b, _, _ in rounds),
        "search_vs_bare_with_processes_there": median(
            s.seconds / w.seconds for s, _, w, _ in rounds
        ),
        "none_stopped_vs_asha": median(s.seconds / a.seconds for s, _, _, a in rounds),
        "metric_of_asha_less_none_stopped": median(a.metric - s.metric for s, _, _, a in rounds),
    }
    ratios = {name: round(value, 5) for name, value in ratios.items()}
    one = median(run.one for run in runs["joblib, its trials"])
    note = (
        f"{options.rows:,} flights, {FAMILY}, {options.processes} processes of one thread; a whole trial takes "
        f"{one:.2f} s (median, in joblib). {options.rounds} rounds, medians; a ratio is within a round. The search's "
        "time is from the call to its answer, on a Ray head that is there; it starts its processes, which import what "
        "trials need, and so does the first loop. Both make the matrices. "
        f"`search_vs_bare` is to stay below {LIMIT}. Object store: most bytes that it held when one of "
        f"{STORED_TRIALS} trials ended; the matrices go in once for all of them."
    )
    write(
        Result(
            "trainer",
            "A search beside its bare trials, and what ASHA saves",
            figures,
            ratios,
            note,
            load,
            tables={"Wall time:": figures, "What Ray's object store holds:": stored},
            more={"stored": stored},
        ),
        _plot(figures),
        publish=not options.no_publish,
    )


def _plot(figures: Sequence[Mapping[str, float | str]]) -> Figure:
    figure = Figure(figsize=(7, 2.2), layout="constrained")
    axes = figure.add_subplot(xlabel="seconds")
    names = [str(row["what"]) for row in figures][::-1]
    axes.barh(names, [float(row["seconds"]) for row in figures][::-1])
    return figure


if __name__ == "__main__":
    main()
