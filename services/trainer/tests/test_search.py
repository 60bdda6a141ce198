"""The search on a real Ray: every family gets its turn, and a cut-off search is taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from everloop_contracts.pipeline import Pipeline
from everloop_trainer.domain import Progress
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
    """Keeps what it is told, and interrupts after some trials if asked to."""

    def __init__(self, interrupt_after: int = 1000) -> None:
        self.trials: list[str] = []
        self.seen: list[Progress] = []
        self._interrupt_after = interrupt_after

    def progress(self, progress: Progress) -> None:
        self.seen.append(progress)
        if len(self.seen) == self._interrupt_after:
            raise RuntimeError("the trainer goes away")

    def trial(
        self,
        trial_id: str,
        family: str,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        failed: bool,
    ) -> None:
        assert not failed
        self.trials.append(family)


@pytest.fixture(scope="module")
def cluster_of_ray() -> Iterator[None]:
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20
    )
    yield
    ray.shutdown()


def test_a_search_finds_a_model_and_goes_on_where_it_was_cut_off(
    cluster_of_ray: None,
    tmp_path: Path,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
) -> None:
    pipeline = make_pipeline(search={"trials": 4, "concurrency": 1, "metric": "roc_auc"})
    rows = prepare(pipeline, make_table())
    cluster = Cluster(tmp_path / "searches")
    first = Notes(interrupt_after=2)
    with pytest.raises(RuntimeError):
        search(pipeline, rows, "t1", cluster, first)
    assert first.trials == ["logistic_regression", "hist_gradient_boosting"]
    second = Notes()
    found = search(pipeline, rows, "t1", cluster, second)
    assert found.trials == 4
    assert len(second.trials) < 4
    assert found.metric > 0.8
    assert found.metric == second.seen[-1].best_metric
    assert second.seen[-1].trials_done == 4
    assert set(found.params) >= {"penalty"} or set(found.params) >= {"learning_rate"}
