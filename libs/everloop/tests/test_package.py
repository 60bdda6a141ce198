"""What `everloop package` refuses, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from everloop import EverloopError
from everloop.package import Target, dockerfile, write_package
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion

ROOT = Path(__file__).parents[3]
PIPELINES = ROOT / "pipelines"
NOWHERE = "http://127.0.0.1:1"


def refused(version: ModelVersion, folder: Path, pipelines: Path = PIPELINES) -> str:
    with pytest.raises(EverloopError) as caught:
        write_package(version, NOWHERE, pipelines, folder)
    return caught.value.reason


def test_only_an_export_of_a_known_pipeline_is_packaged(tmp_path: Path) -> None:
    version = ModelVersion(model="flight-delays", version=2, run_id="run", onnx_sha256="ab")
    folder = tmp_path / "package"
    assert refused(ModelVersion(model="flight-delays", version=2), folder) == "EXPORT_MISSING"
    assert refused(version, folder, tmp_path) == "PIPELINE_NOT_FOUND"
    assert refused(version, tmp_path) == "FOLDER_EXISTS"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_nothing_is_left_where_mlflow_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    version = ModelVersion(model="flight-delays", version=2, run_id="run", onnx_sha256="ab")
    assert refused(version, tmp_path / "package") == "ARTIFACT_UNAVAILABLE"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", Target)
def test_the_image_of_a_package_stands_on_one_that_is_built(target: Target) -> None:
    text = dockerfile(ModelVersion(model="flight-delays", version=2, run_id="run"), target)
    (base,) = (line for line in text.splitlines() if line.startswith("ARG SERVER="))
    name = base.partition("=")[2].partition(":")[0].removeprefix("everloop-")
    server = (ROOT / "services/inference/Dockerfile").read_text()
    assert f"FROM ${{BASE}} AS {name}\n" in server
    assert name in (ROOT / "tools/images.sh").read_text()
