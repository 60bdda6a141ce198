"""From rows to a model in a real MLflow, with the search faked; the model loads with MLflow alone."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from everloop_contracts.pipeline import Pipeline, Task
from everloop_features import InputSpec, feeds_from_rows
from everloop_runtime.errors import EverloopError, Kind
from everloop_trainer.adapters.mlflow import MlflowTracking
from everloop_trainer.domain import Cancelled, Cause, Dataset, State, Training, TrainingError
from everloop_trainer.families import Problem, load_family
from everloop_trainer.measure import measure
from everloop_trainer.onnx_model import run_onnx
from everloop_trainer.ports import Incumbent
from everloop_trainer.rows import Rows, prepare
from everloop_trainer.search import Cluster, Found, Watcher, Winner
from everloop_trainer.train import Train


class FakeDatasets:
    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def fetch(self, dataset: Dataset) -> pa.Table:
        return self.table


class FakeProduction:
    def __init__(self, model: Incumbent | None = None) -> None:
        self.model = model

    def incumbent(self, model: str) -> Incumbent | None:
        return self.model


seen_before: list[Winner | None] = []
"""What each search was told had won before."""


def fake_search(family: str) -> Callable[..., Found]:
    def search(
        pipeline: Pipeline,
        rows: Rows,
        training_id: str,
        cluster: Cluster,
        watcher: Watcher,
        before: Winner | None = None,
    ) -> Found:
        seen_before.append(before)
        params = {key: item.default for key, item in load_family(family).space.items()}
        curve = [{"roc_auc": 0.6, "budget": 1}, {"roc_auc": 0.7, "budget": 9}]
        watcher.trial("abc", family, params, curve[-1], False, curve)
        return Found(family, params, 0.7, 1, 2.5)

    return search


def run(
    tracking: MlflowTracking,
    pipeline: Pipeline,
    table: pa.Table,
    dataset: Dataset,
    family: str = "hist_gradient_boosting",
    training_id: str = "t1",
    incumbent: Incumbent | None = None,
) -> Any:
    train = train_with(tracking, table, family, incumbent)
    training = training_of(training_id, dataset)
    return train.run(pipeline, training, lambda *_: None, lambda _: None, lambda *_: None)


def training_of(training_id: str, dataset: Dataset) -> Training:
    now = datetime.now(UTC)
    return Training(training_id, 1, dataset, State.RUNNING, Cause.DRIFT, "event", now)


def train_with(
    tracking: Any,
    table: pa.Table,
    family: str = "hist_gradient_boosting",
    incumbent: Incumbent | None = None,
) -> Train:
    return Train(
        FakeDatasets(table),
        FakeProduction(incumbent),
        tracking,
        Cluster(Path("unused")),
        nullcontext,
        fake_search(family),
    )


@pytest.fixture
def tracking(tmp_path: Path) -> MlflowTracking:
    found = MlflowTracking(f"sqlite:///{tmp_path / 'mlflow.db'}")
    mlflow.MlflowClient().create_experiment("sales", artifact_location=(tmp_path / "a").as_uri())
    return found


def artifacts(run_id: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"runs:/{run_id}/everloop"))


@pytest.mark.filterwarnings("ignore::UserWarning:mlflow", "ignore::UserWarning:pydantic")
def test_a_model_is_logged_with_all_that_serving_and_monitoring_need(
    tracking: MlflowTracking,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
    make_dataset: Callable[..., Dataset],
) -> None:
    pipeline, table = make_pipeline(slices=["city"]), make_table()
    trained = run(tracking, pipeline, table, make_dataset())
    assert seen_before[-1:] == [None]
    assert status(trained.run_id) == "FINISHED"
    assert trained.metrics["roc_auc"] > 0.8
    assert trained.export_difference < 1e-5
    assert (trained.training_rows, trained.holdout_rows) == (540, 108)
    assert trained.model_uri == f"runs:/{trained.run_id}/model"
    folder = artifacts(trained.run_id)
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "golden.json",
        "reference.parquet",
        "recipe.json",
        "environment.txt",
        "trained.json",
        "scores.parquet",
        "slices.json",
        "importance.json",
        "importance.png",
        "confusion.png",
        "precision_recall.png",
        "roc.png",
        "calibration.png",
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    content = tracking.load(trained.run_id, 1).onnx
    assert manifest["onnx_sha256"] == trained.onnx_sha256 == hashlib.sha256(content).hexdigest()
    assert manifest["classes"] == ["false", "true"]
    golden = json.loads((folder / "golden.json").read_text())
    inputs = [InputSpec.from_json(item) for item in manifest["inputs"]]
    answered = run_onnx(content, feeds_from_rows(golden["rows"], inputs))
    np.testing.assert_allclose(answered, golden["probabilities"], atol=1e-5)
    reference = pq.read_table(io.BytesIO((folder / "reference.parquet").read_bytes()))
    assert reference.column_names == [
        "at",
        "city",
        "price",
        "outcome",
        "everloop_score",
        "everloop_label",
    ]
    assert set(reference["everloop_label"].to_pylist()) == {"false", "true"}
    children = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.`mlflow.parentRunId` = '{trained.run_id}'"
    )
    assert children["metrics.roc_auc"].tolist() == [0.7]
    client = mlflow.MlflowClient()
    curve = client.get_metric_history(children["run_id"][0], "roc_auc")
    assert [(point.step, point.value) for point in curve] == [(1, 0.6), (9, 0.7)]
    logged = client.get_run(trained.run_id).data.metrics
    assert logged["roc_auc_low"] <= logged["roc_auc"] <= logged["roc_auc_high"]
    assert logged["slice/city/Graz/accuracy"] == trained.slices[0].metrics["accuracy"]
    assert logged["model_bytes"] == len(content)
    assert 0 < logged["p99_seconds"] < 1
    assert logged["cpu_seconds"] > 2.5  # that of the trials among it
    scores = pq.read_table(folder / "scores.parquet")
    assert scores["record_id"].to_pylist() == holdout_ids(table)
    found = np.array(scores["candidate"].to_pylist(), np.float32)
    problem = Problem(Task.BINARY, 2)
    assert measure(problem, scores["target"].to_numpy().astype(int), found) == trained.metrics
    assert scores["baseline"].null_count == len(scores)
    example = mlflow.models.Model.load(trained.model_uri).load_input_example()
    assert sorted(example) == ["at", "city", "price"]
    assert mlflow.pyfunc.load_model(trained.model_uri).predict(example)["probabilities"].shape == (
        1,
        2,
    )
    signature = mlflow.models.get_model_info(trained.model_uri).signature
    assert [spec.name for spec in signature.outputs] == ["probabilities"]
    # What a stock client does: load the model and give it a frame.
    frame = pd.DataFrame(
        {"at": [1_700_000_000, 0], "city": ["Graz", "Rom"], "price": [12.0, float("nan")]}
    )
    answer = mlflow.pyfunc.load_model(trained.model_uri).predict(frame)
    assert answer["probabilities"].shape == (2, 2)
    # A second attempt after a crash finds the model and logs no other, and ends the run.
    mlflow.MlflowClient().update_run(trained.run_id, "RUNNING")
    again = run(tracking, pipeline, table, make_dataset())
    assert again == dataclasses.replace(trained, seconds=again.seconds)
    assert status(trained.run_id) == "FINISHED"
    found = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.`everloop.training_id` = 't1'"
    )
    assert len(found) == 1
    # The next training is judged beside it, on the same rows.
    incumbent = tracking.load(trained.run_id, 4)
    second = run(
        tracking,
        pipeline,
        table,
        make_dataset(2),
        family="logistic_regression",
        training_id="t2",
        incumbent=incumbent,
    )
    assert second.baseline_version == 4
    defaults = {
        key: item.default for key, item in load_family("hist_gradient_boosting").space.items()
    }
    assert seen_before[-1] == ("hist_gradient_boosting", defaults)
    assert set(second.baseline_metrics) == set(second.metrics)
    assert set(second.slices[0].baseline_metrics) == set(second.slices[0].metrics)
    scores = pq.read_table(artifacts(second.run_id) / "scores.parquet")
    found = np.array(scores["baseline"].to_pylist(), np.float32)
    # They went through a filter against zeros.
    again = measure(problem, scores["target"].to_numpy().astype(int), found)
    assert again == second.baseline_metrics


def holdout_ids(table: pa.Table) -> list[str]:
    labelled = table.filter(pc.is_valid(table["outcome"]))
    ids: list[str] = labelled["id"].to_pylist()[-108:]
    return ids


def status(run_id: str) -> str:
    return str(mlflow.MlflowClient().get_run(run_id).info.status)


def test_a_training_that_failed_for_good_leaves_a_failed_run(
    tracking: MlflowTracking,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
    make_dataset: Callable[..., Dataset],
) -> None:
    training = training_of("t1", make_dataset())
    train = train_with(tracking, make_table(rows=30))
    with pytest.raises(TrainingError):
        train.run(make_pipeline(), training, lambda *_: None, lambda _: None, lambda *_: None)
    run_id = tracking.open_run(training)
    assert status(run_id) == "RUNNING"
    train.give_up(training)
    assert status(run_id) == "FAILED"
    # One that never came to a run, of a pipeline that has no experiment either.
    never = dataclasses.replace(make_dataset(), pipeline="never")
    train.give_up(training_of("t2", never))
    assert mlflow.MlflowClient().get_experiment_by_name("never") is None


def test_books_that_are_away_do_not_keep_a_training_from_its_end(
    make_table: Callable[..., pa.Table], make_dataset: Callable[..., Dataset]
) -> None:
    train = train_with(AwayTracking(), make_table())
    train.give_up(training_of("t1", make_dataset()))


class AwayTracking:
    def kill(self, training: Training) -> None:
        self.fail(training)

    def fail(self, training: Training) -> None:
        raise EverloopError(Kind.UNAVAILABLE, "MLFLOW_UNAVAILABLE", "MLflow does not answer")


def test_mlflow_that_is_away_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, make_dataset: Callable[..., Dataset]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    before = mlflow.get_tracking_uri()
    tracking: Any = MlflowTracking("http://127.0.0.1:9")
    training: Any = training_of("t1", make_dataset())
    try:
        for attempt in (
            lambda: tracking.open_run(training),
            lambda: tracking.finished("r"),
            lambda: tracking.load("r", 1),
            lambda: tracking.log_trial("r", "t", "mlp", {}, {}, False),
            lambda: tracking.fail(training),
            lambda: tracking.kill(training),
        ):
            with pytest.raises(EverloopError) as caught:
                attempt()
            assert caught.value.kind is Kind.UNAVAILABLE
    finally:
        mlflow.set_tracking_uri(before)


def test_a_cancelled_training_leaves_a_killed_run_and_no_search(
    tracking: MlflowTracking,
    tmp_path: Path,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
    make_dataset: Callable[..., Dataset],
) -> None:
    training = training_of("t1", make_dataset())
    folder = tmp_path / "searches"

    def search(pipeline: Pipeline, rows: Rows, training_id: str, *rest: Any) -> Found:
        (folder / training_id).mkdir(parents=True)
        rest[1].check()
        raise AssertionError("the search goes on")

    def check() -> None:
        if folder.exists():
            raise Cancelled

    fakes = FakeDatasets(make_table()), FakeProduction()
    train = Train(*fakes, tracking, Cluster(folder), nullcontext, search)
    with pytest.raises(Cancelled):
        train.run(
            make_pipeline(), training, lambda *_: None, lambda _: None, lambda *_: None, check
        )
    for _ in range(2):  # a crash may cut it off
        train.cancel(training)
        assert status(tracking.open_run(training)) == "KILLED"
        assert list(folder.iterdir()) == []
    train_with(AwayTracking(), make_table()).cancel(training)


class MemoryTracking:
    """Tracking that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def open_run(self, training: Training) -> str:
        return training.id

    def log_trial(self, *args: object) -> None:
        raise ConnectionError("books that cannot be written never end a search")

    def finished(self, run_id: str) -> None:
        return None

    def winner_before(self, training: Training) -> None:
        return None

    def log_model(
        self, run_id: str, pipeline: Pipeline, params: Mapping[str, Any], files: Any, trained: Any
    ) -> Any:
        self.logged[run_id] = files
        return trained


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize("family", ["logistic_regression", "hist_gradient_boosting"])
def test_other_tasks_are_trained_too(
    task: str,
    family: str,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
    make_dataset: Callable[..., Dataset],
) -> None:
    tracking: Any = MemoryTracking()
    trained = run(tracking, make_pipeline(task), make_table(task), make_dataset(), family)
    assert trained.export_difference < 1e-4
    manifest = json.loads(tracking.logged["t1"].files["manifest.json"])
    if task == Task.REGRESSION:
        assert trained.metrics["rmse"] < 3
        assert {"predicted.png", "residuals.png"} < set(tracking.logged["t1"].files)
        assert manifest["classes"] == []
    else:
        assert trained.metrics["accuracy"] > 0.6
        assert "confusion.png" in tracking.logged["t1"].files
        assert manifest["classes"] == ["low", "mid", "top"]


def test_too_few_rows_and_a_single_class_allow_no_model(
    make_pipeline: Callable[..., Pipeline], make_table: Callable[..., pa.Table]
) -> None:
    with pytest.raises(TrainingError, match="too few"):
        prepare(make_pipeline(), make_table(rows=30))
    table = make_table()
    same = pa.array([True] * len(table))
    with pytest.raises(TrainingError, match="the same 'outcome'"):
        prepare(make_pipeline(), table.set_column(4, "outcome", same))


def test_the_window_keeps_the_newest_rows_and_the_holdout_is_the_newest_of_them(
    make_pipeline: Callable[..., Pipeline], make_table: Callable[..., pa.Table]
) -> None:
    rows = prepare(make_pipeline(window="10d"), make_table())
    assert 200 <= len(rows) <= 241
    taught, holdout = rows.split(0.25)
    assert len(holdout) == round(len(rows) * 0.25)
    assert max(taught.table["at"].to_pylist()) < min(holdout.table["at"].to_pylist())
