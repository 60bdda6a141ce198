"""`dvc repro` in a checkout, by stock DVC: it makes a model once, and the same one again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from package_run import serving
from pyarrow import fs

from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.domain import ObjectFile, Part, State, Version

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Checkout:
    """What `dvc.yaml` needs of the repository, with a smaller training, and in it commands as a person types them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dvc.yaml", "params.yaml", ".dvcignore", "requirements.lock", "pipelines"):
            _copy(ROOT / name, folder / name)
        for name in ("config", ".gitignore"):
            _copy(ROOT / ".dvc" / name, folder / ".dvc" / name)
        for stage in yaml.safe_load((folder / "dvc.yaml").read_text())["stages"].values():
            for path in stage["deps"]:
                if "$" not in path:
                    _copy(ROOT / path, folder / path)
        (folder / ".gitignore").write_text("training/\n")
        self.change("params.yaml", flights={"months": 3, "days": 2})
        self.run("git", "init", "--quiet")

    def change(self, path: str, **values: object) -> None:
        """Puts other values into a YAML file."""
        file = self.folder / path
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **values}))

    def run(self, *command: str) -> str:
        """Runs it where `.venv` is active; returns what it printed."""
        told = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(command, cwd=self.folder, env=told, timeout=300, **options)
        assert done.returncode == 0, done.stdout
        return str(done.stdout)

    @property
    def model(self) -> Path:
        """Where the model comes to lie."""
        return self.folder / "training" / "flight-delays"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("checkout"))
    pipeline = yaml.safe_load((made.folder / "pipelines/flight-delays.yaml").read_text())
    training = pipeline["training"] | {
        "families": ["logistic_regression", "hist_gradient_boosting"],
        "search": {**pipeline["training"]["search"], "trials": 2},
    }
    made.change("pipelines/flight-delays.yaml", training=training)
    told = made.run("dvc", "repro")
    assert "Running stage 'flights'" in told and "trial 2 of 2" in told
    return made


def test_a_second_time_there_is_nothing_to_do(checkout: Checkout) -> None:
    told = checkout.run("dvc", "repro")
    assert "Data and pipelines are up to date" in told and "Running" not in told
    # Neither does what decides about a model that is there already.
    checkout.change("pipelines/flight-delays.yaml", promotion={"approval": "manual", "gates": []})
    assert "up to date" in checkout.run("dvc", "repro")


def test_metrics_and_search_are_told(checkout: Checkout) -> None:
    (told,) = json.loads(checkout.run("dvc", "metrics", "show", "--json"))[""]["data"].values()
    trained = json.loads((checkout.model / "trained.json").read_text())
    assert told["data"]["holdout"] == trained["metrics"]
    assert told["data"]["holdout"]["roc_auc"] > 0.55
    trials = json.loads((checkout.model / "trials.json").read_text())
    assert [trial["failed"] for trial in trials] == [False] * 2
    best = max(trials, key=lambda trial: trial["metrics"]["roc_auc"])
    assert told["data"]["family"] == best["family"]


def test_the_folder_is_what_a_model_server_serves(checkout: Checkout, tmp_path: Path) -> None:
    golden = json.loads((checkout.model / "golden.json").read_bytes())
    with serving(checkout.model, tmp_path) as everloop:
        answer = everloop.predict("flight-delays", golden["rows"])
    for item, wanted in zip(answer.predictions, golden["probabilities"], strict=True):
        assert item.score == pytest.approx(wanted[1], abs=1e-5)


def test_the_same_rows_as_a_dataset_version_of_the_platform_give_the_same_model(
    checkout: Checkout, tmp_path: Path
) -> None:
    rows = pq.read_table(checkout.folder / "training/flights.parquet")
    version = publish([rows.slice(0, 2000), rows.slice(2000)], tmp_path)
    checkout.run("dvc", "import", "--rev", version.tag, str(tmp_path / "datasets"), version.path)
    checkout.change("params.yaml", data="rows")
    before = json.loads((checkout.model / "version.json").read_text())
    told = checkout.run("dvc", "repro", "train")
    assert "Running stage 'train'" in told and "Running stage 'flights'" not in told
    after = json.loads((checkout.model / "version.json").read_text())
    assert after["run_id"] != before["run_id"]
    assert after["sha256"] == before["sha256"]


def publish(tables: Sequence[pa.Table], folder: Path) -> ObjectFile:
    """Cuts version 3 of the flights as ingest does, its parts on a remote that is a folder."""
    (folder / "remote").mkdir()
    store = fs.LocalFileSystem()
    repository = DvcRepository(folder / "datasets", str(folder / "remote"), {}, {}, store)
    now, new, parts = datetime.now(UTC), {}, []
    for number, table in enumerate(tables):
        path = folder / f"{number}.parquet"
        pq.write_table(table, path)
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        new[md5] = path
        rest = (len(table), len(table), now, "", now, "", "")
        parts.append(Part(md5, "", path.stat().st_size, *rest))
    version = Version("flight-delays", 3, State.CUTTING, "r3", now, 0)
    return repository.publish(version, parts, new, lambda: None)
