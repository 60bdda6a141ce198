"""A model is trained again in two environments made from nothing: clones of their own, packages of their own."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from parcels import NAME, pipeline, records

from everloop import Everloop, EverloopError, stack

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
SEARCH: dict[str, Any] = {
    "families": ["logistic_regression", "hist_gradient_boosting"],
    "search": {"trials": 4},
    "triggers": {"min_rows": 100},
}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    pipelines, home = tmp_path / "pipelines", tmp_path / "home"
    pipelines.mkdir()
    (pipelines / f"{NAME}.yaml").write_text(yaml.safe_dump(pipeline(training=SEARCH)))
    try:
        stack.up(home, only=("ingest", "trainer", "inference"), pipelines=pipelines)
        yield home
    finally:
        stack.down(home)


def clean_environment(folder: Path) -> dict[str, str]:
    """Nothing of this one's but the way to the packages, what was downloaded of them included."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "EVERLOOP_", "MLFLOW_", "RAY_", "OMP_"))
    }
    cache = kept.get("UV_CACHE_DIR") or str(Path.home() / ".cache/uv")
    return kept | {"HOME": str(folder), "UV_CACHE_DIR": cache}


def test_two_clean_environments_give_the_model_to_the_bit(home: Path, tmp_path: Path) -> None:
    with Everloop.connect(home) as everloop:
        everloop.push(NAME, records())
        everloop.cut(NAME)
        deadline = time.monotonic() + 300
        while True:
            try:
                version = everloop.lineage(NAME, 1).version
                break
            except EverloopError as error:  # it is being trained
                assert time.monotonic() < deadline, error
                time.sleep(0.5)
    for name in ("one", "two"):
        clone, environment = tmp_path / name, clean_environment(tmp_path / f"{name}-home")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        setup = subprocess.run(
            ["make", "setup"], cwd=clone, env=environment, capture_output=True, text=True
        )
        assert setup.returncode == 0, setup.stderr
        command = [".venv/bin/everloop", "--home", str(home), "reproduce", f"{NAME}@1", "--json"]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr + done.stdout
        told = json.loads(done.stdout)
        assert told["reproduced"] and told["difference"] == 0
        assert told["again"]["onnx_sha256"] == version.onnx_sha256
        print(f"{name}: {told['trials']} trials, SHA-256 {told['again']['onnx_sha256']}")
