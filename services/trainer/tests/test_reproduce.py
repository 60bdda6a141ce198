"""A recorded training is made again, from files and books alone, and tells a difference from equality."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from everloop_contracts.pipeline import Pipeline
from everloop_trainer import app
from everloop_trainer.adapters.mlflow import MlflowTracking
from everloop_trainer.domain import Cause, DataFile, Dataset, State, Trained, Training
from everloop_trainer.families import load_family
from everloop_trainer.folds import folds_of
from everloop_trainer.judge import judge
from everloop_trainer.recipe import RECIPE, Recipe, code_digest, environment
from everloop_trainer.rows import Rows
from everloop_trainer.search import Cluster, Found, Watcher, Winner
from everloop_trainer.train import Train

pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning:mlflow", "ignore::UserWarning:pydantic"
)
FAMILIES = ("logistic_regression", "random_forest", "hist_gradient_boosting")


class NoProduction:
    def incumbent(self, model: str) -> None:
        return None


class Stopped(Exception):
    """What a scheduler does to a trial."""


def searched(
    pipeline: Pipeline,
    rows: Rows,
    training_id: str,
    cluster: Cluster,
    watcher: Watcher,
    before: Winner | None,
) -> Found:
    """A search without Ray: every family's defaults, the first stopped early as ASHA would."""
    folds, results = folds_of(pipeline, rows), []
    for number, name in enumerate(pipeline.training.families):
        params = {key: item.default for key, item in load_family(name).space.items()}
        last: dict[str, float] = {}

        def report(
            values: dict[str, float], last: dict[str, float] = last, number: int = number
        ) -> None:
            last.update(values)
            if number == 1:
                raise Stopped

        with suppress(Stopped):
            judge(name, params, folds, rows.problem, "roc_auc", pipeline.training.seed, report)
        watcher.trial(f"t{number}", name, params, {**last, "seconds": 1.0}, False)
        results.append((last["roc_auc"], name, params))
    watcher.trial("broken", "mlp", {}, {"seconds": 0.0}, True)
    metric, family, params = max(results, key=lambda item: item[0])
    return Found(family, params, metric, len(results))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def trained(
    uri: str,
    folder: Path,
    make_pipeline: Callable[..., Pipeline],
    make_table: Callable[..., pa.Table],
    make_dataset: Callable[..., Dataset],
) -> Trained:
    tracking = MlflowTracking(uri)
    mlflow.MlflowClient().create_experiment("sales", artifact_location=(folder / "a").as_uri())
    path = folder / "rows.parquet"
    pq.write_table(make_table(), path)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    dataset = dataclasses.replace(make_dataset(), files=(DataFile(path.as_uri(), md5),))
    training = Training("t1", 1, dataset, State.RUNNING, Cause.DRIFT, "event", datetime.now(UTC))

    class Files:
        def fetch(self, dataset: Dataset) -> pa.Table:
            return pq.read_table(path)

    cluster = Cluster(folder / "searches")
    train = Train(Files(), NoProduction(), tracking, cluster, nullcontext, searched)
    pipeline = make_pipeline(families=FAMILIES)
    return train.run(pipeline, training, lambda *_: None, lambda _: None, lambda *_: None)


def again(run_id: str, uri: str, monkeypatch: Any, capsys: Any, *options: str) -> tuple[int, str]:
    monkeypatch.setenv("EVERLOOP_MLFLOW_URI", uri)
    capsys.readouterr()
    code = app.reproduce([run_id, *options])
    return code, capsys.readouterr().out


def test_scikit_learn_gives_the_same_winner_metrics_and_model_to_the_bit(
    trained: Trained, uri: str, monkeypatch: Any, capsys: Any
) -> None:
    code, told = again(trained.run_id, uri, monkeypatch, capsys, "--json")
    found = json.loads(told)
    assert code == 0
    assert found["trials"] == 3  # the one that failed has nothing to repeat
    assert (found["difference"], found["same_winner"], found["same_model"]) == (0.0, True, True)
    assert found["again"]["metrics"] == found["recorded"]["metrics"] == trained.metrics
    assert found["again"]["onnx_sha256"] == trained.onnx_sha256
    assert found["again"]["validation"] == found["recorded"]["validation"] is not None
    assert (found["same_code"], found["packages"]) == (True, [])
    code, told = again(trained.run_id, uri, monkeypatch, capsys, "--no-trials")
    assert code == 0
    assert told.splitlines()[-1].startswith("reproduced bit for bit")


def test_what_was_recorded_otherwise_is_not_reproduced(
    trained: Trained, uri: str, monkeypatch: Any, capsys: Any
) -> None:
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{trained.run_id}/everloop"))
    recipe = Recipe.from_json((folder / RECIPE).read_bytes())
    [name, value] = next(iter(recipe.params.items()))
    other = dataclasses.replace(
        recipe, params={**recipe.params, name: value * 2}, code_digest="0" * 64
    )
    monkeypatch.setattr(
        MlflowTracking, "recipe", lambda self, run_id: (other, ("gone==1.0", *environment()[1:]))
    )
    code, told = again(trained.run_id, uri, monkeypatch, capsys)
    assert code == 1
    assert f"code: {'0' * 12}" in told and f"→ {code_digest()[:12]}" in told
    assert "2 packages differ" in told and "gone 1.0 → none" in told
    assert told.splitlines()[-1].startswith("NOT reproduced")


def test_a_run_that_is_not_there_or_whose_data_are_spoilt_cannot_be_repeated(
    trained: Trained, uri: str, folder: Path, monkeypatch: Any, capsys: Any
) -> None:
    assert again("0" * 32, uri, monkeypatch, capsys)[0] == 3
    path = folder / "rows.parquet"
    content = path.read_bytes()
    path.write_bytes(b"spoilt")
    try:
        assert again(trained.run_id, uri, monkeypatch, capsys)[0] == 3
    finally:
        path.write_bytes(content)


def test_a_recipe_is_read_as_it_was_written(
    make_pipeline: Callable[..., Pipeline], make_dataset: Callable[..., Dataset]
) -> None:
    pipeline = make_pipeline(window="10d")
    recipe = Recipe(
        pipeline,
        make_dataset(),
        "mlp",
        {"rate": 0.1 + 0.2, "width": 3},
        {"f1": 1 / 3},
        "a",
        "b",
        "",
    )
    assert Recipe.from_json(recipe.to_json()) == recipe
