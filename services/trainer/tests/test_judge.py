"""Trials are judged on rows newer than those that taught, and start from what won before."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from ray.tune.search.searcher import Searcher

from everloop_contracts.pipeline import Task
from everloop_trainer import search
from everloop_trainer.families import Problem, load_family, params_of
from everloop_trainer.families.classes import spread
from everloop_trainer.folds import folds_of
from everloop_trainer.judge import BUDGET, judge
from everloop_trainer.measure import measure
from everloop_trainer.rows import prepare
from everloop_trainer.search import first_points

NAME = "logistic_regression"


def test_folds_go_on_in_time_each_judged_by_all_rows_before(
    make_pipeline: Any, make_table: Any
) -> None:
    pipeline = make_pipeline(search={"folds": 4, "metric": "roc_auc"}, class_weights="balanced")
    rows = prepare(pipeline, make_table())
    folds = folds_of(pipeline, rows)
    assert len(folds) == 4
    end = len(rows)
    for fold in reversed(folds):
        taught, judged = fold.targets
        # Exactly the rows up to where the newer fold's judged ones begin: none twice, none left out.
        np.testing.assert_array_equal(judged, rows.target[end - len(judged) : end])
        end -= len(judged)
        np.testing.assert_array_equal(taught, rows.target[:end])
        assert fold.weights is not None and fold.weights.shape == taught.shape
    assert folds[0].targets[0].size >= len(rows) // 6


def test_what_is_reported_is_the_mean_over_the_folds_so_far(
    make_pipeline: Any, make_table: Any
) -> None:
    pipeline = make_pipeline(search={"folds": 3, "metric": "roc_auc"})
    rows = prepare(pipeline, make_table())
    folds = folds_of(pipeline, rows)
    family, params = load_family(NAME), {"penalty": 1.0}
    reports: list[dict[str, float]] = []
    judge(NAME, params, folds, rows.problem, "roc_auc", 7, reports.append)
    assert [report["budget"] for report in reports] == [3, 6, BUDGET]
    single = []
    for fold in folds:
        taught, judged = fold.matrices["dense"]
        model = family.fit(rows.problem, taught, fold.targets[0], params, 7)
        answered = family.predict(rows.problem, model, judged)
        single.append(measure(rows.problem, fold.targets[1], answered)["roc_auc"])
    for count, report in enumerate(reports, start=1):
        assert report["roc_auc"] == pytest.approx(np.mean(single[:count]))


def test_one_fold_is_the_newest_quarter(make_pipeline: Any, make_table: Any) -> None:
    pipeline = make_pipeline()
    rows = prepare(pipeline, make_table())
    [fold] = folds_of(pipeline, rows)
    assert len(fold.targets[1]) == round(len(rows) / 4)
    assert fold.weights is None


def test_a_class_that_did_not_teach_has_no_chance() -> None:
    problem = Problem(Task.MULTICLASS, 3)
    answered = np.array([[0.25, 0.75]], np.float32)
    assert spread(problem, np.array([0, 2, 2]), answered).tolist() == [[0.25, 0.0, 0.75]]
    assert spread(problem, np.array([0, 1, 2]), np.eye(3, dtype=np.float32)).shape == (3, 3)


def test_what_won_before_is_tried_first_where_it_still_can_be() -> None:
    families = (NAME, "mlp")
    defaults = first_points(families, None)
    assert [point["family"] for point in defaults] == [NAME, "mlp"]
    won = (NAME, {"penalty": 3.5})
    assert first_points(families, won) == [
        {"family": NAME, f"{NAME}.penalty": 3.5},
        *defaults,
    ]
    for other in (
        (NAME, {"penalty": 1.0}),  # a default already
        (NAME, {"penalty": 1e9}),  # outside of the space
        (NAME, {"strength": 1.0}),  # of another version of the family
        ("random_forest", {}),  # not of this pipeline any more
    ):
        assert first_points(families, other) == defaults


def test_the_time_in_which_nobody_searched_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that is taken up again after a night has what was left of its budget."""
    clock = [1000.0]
    monkeypatch.setattr("everloop_trainer.search.time.monotonic", lambda: clock[0])
    families = ("logistic_regression",)
    bounded = search._BoundedSearch(
        partial(search._space, families), metric="roc_auc", mode="max", seconds=60.0
    )
    assert bounded.suggest("1") != Searcher.FINISHED
    clock[0] += 50
    assert bounded.suggest("2") != Searcher.FINISHED
    # As another process finds it, whose clock is another.
    monkeypatch.setattr(search, "_PROCESS", "another")
    clock[0] = 90_000.0
    assert bounded.suggest("3") != Searcher.FINISHED
    clock[0] += 11
    assert bounded.suggest("4") == Searcher.FINISHED


def test_parameters_survive_being_text() -> None:
    params = {
        "width": 64,
        "depth": 2,
        "learning_rate": 0.1 + 0.2,
        "weight_decay": 1e-5,
        "batch": 256,
    }
    assert params_of("mlp", {key: str(value) for key, value in params.items()}) == params
    with pytest.raises(LookupError):
        params_of("mlp", {"width": "64"})
