"""A packaged model answers as the platform does, and without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo_run import Run
from package_run import serving

pytestmark = pytest.mark.e2e


def test_a_packaged_model_answers_as_the_platform(run: Run, tmp_path: Path) -> None:
    model = run.package / "model"
    rows = json.loads((model / "golden.json").read_bytes())["rows"]
    with serving(model, tmp_path) as everloop:
        for http in (False, True):
            answer = everloop.predict("flight-delays", rows, http=http)
            assert [item.score for item in answer.predictions] == run.golden


def test_its_context_is_complete(run: Run) -> None:
    version = json.loads((run.package / "model/version.json").read_bytes())
    assert "COPY model /opt/model" in (run.package / "Dockerfile").read_text()
    task = json.loads((run.package / "task-definition.json").read_bytes())
    assert task["containerDefinitions"][0]["image"] == f"flight-delays:{version['version']}"
