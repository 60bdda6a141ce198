"""One run of the small slice, with a kill of every service in it, shared by the tests that look at it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from demo_run import Run, run_small
from kills import Killer
from libs.everloop_runtime.tests.collector import collecting
from live_prometheus import series
from notebook_run import run_all
from readme_run import Reader
from tools.dashboards import queries

from everloop import Everloop, stack
from everloop.stack.parts import prometheus


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs once per session: it takes minutes. Then README.md is followed on the stack that is up."""
    root = tmp_path_factory.mktemp("run")
    try:
        with Killer() as killer, collecting() as (endpoint, spans):
            summary = run_small(root, killer, keep=True, OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
        outcomes = Reader(root / "demo", tmp_path_factory.mktemp("readme")).read()
        package = make_package(root)
        with Everloop.connect(root / "demo") as everloop:
            received = everloop.stats("flight-delays").received
            golden = predict_golden(everloop, package)
        seen = series(stack.load(root / "demo"), queries()) if prometheus.installed() else {}
        notebooks = run_all(root / "demo")
    finally:
        stack.down(root / "demo")
    return Run(
        root, killer.killed, summary, spans, outcomes, received, seen, package, golden, notebooks
    )


def make_package(root: Path) -> Path:
    package = root / "package"
    command = [sys.executable, "-m", "everloop.cli", "--home", str(root / "demo")]
    command += ["package", "flight-delays", "--to", str(package), "--no-build"]
    subprocess.run(command, check=True, timeout=120)
    return package


def predict_golden(everloop: Everloop, package: Path) -> list[float]:
    rows = json.loads((package / "model/golden.json").read_bytes())["rows"]
    return [item.score for item in everloop.predict("flight-delays", rows).predictions]
