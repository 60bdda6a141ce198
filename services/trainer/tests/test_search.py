"""The search on a real Ray, cut off by kill -9 and taken up again."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Cancelled, Progress
from everloop_trainer.families import load_family
from everloop_trainer.rows import prepare
from everloop_trainer.search import Cluster, search

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


class Notes:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # as a database has: what follows a search cannot be pickled
        self.trials: list[str] = []
        self.seen: list[Progress] = []

    def check(self) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)

    def trial(
        self,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
        curve: Sequence[Mapping[str, float]] = (),
    ) -> None:
        assert not failed
        assert [point["budget"] for point in curve] == sorted({p["budget"] for p in curve})
        assert curve[-1]["roc_auc"] == metrics["roc_auc"]
        assert metrics["cpu_seconds"] > 0
        self.trials.append(family)


# A process of its own, Ray and all, that dies after its second trial as by kill -9.
KILLED = """
import os, pickle, signal, sys
from pathlib import Path
import ray
from everloop_trainer.search import Cluster, search

class Kill:
    def check(self):
        pass
    def progress(self, progress):
        if progress.trials_done == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    def trial(self, *args):
        pass

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20)
    pipeline, rows = pickle.loads(Path(sys.argv[1]).read_bytes())
    search(pipeline, rows, "t1", Cluster(Path(sys.argv[2])), Kill())
"""


@pytest.mark.faults
def test_a_search_that_was_killed_comes_to_its_end(
    tmp_path: Path,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
) -> None:
    pipeline = make_pipeline(search={"trials": 4, "concurrency": 1, "metric": "roc_auc"})
    rows = prepare(pipeline, make_table())
    (tmp_path / "work").write_bytes(pickle.dumps((pipeline, rows)))
    (tmp_path / "killed.py").write_text(KILLED)
    folder = tmp_path / "searches"
    command: list[str | Path] = [sys.executable, tmp_path / "killed.py", tmp_path / "work", folder]
    killed = subprocess.run(command, timeout=200, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (folder / "t1").exists()
    notes = Notes()
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
    )
    try:
        found = search(pipeline, rows, "t1", Cluster(folder), notes)
    finally:
        ray.shutdown()
    assert found.trials == 4
    assert found.metric > 0.8
    assert found.metric == notes.seen[-1].best_metric
    assert notes.seen[-1].trials_done == 4
    assert set(found.params) == set(load_family(found.family).space)


class Impatient(Notes):
    """Cancels once the first trial has ended."""

    def check(self) -> None:
        if self.trials:
            raise Cancelled


def test_a_search_that_is_cancelled_stops_its_trials(
    tmp_path: Path,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
) -> None:
    pipeline = make_pipeline(search={"trials": 400, "concurrency": 2, "metric": "roc_auc"})
    notes = Impatient()
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
    )
    try:
        with pytest.raises(Cancelled):
            search(pipeline, prepare(pipeline, make_table()), "t1", Cluster(tmp_path), notes)
        deadline = time.monotonic() + 60
        while ray.available_resources().get("CPU") != 2:  # every trial has given its processor back
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        ray.shutdown()
    assert len(notes.trials) < 20
