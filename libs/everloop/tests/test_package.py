"""What `everloop package` refuses, and what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from everloop import EverloopError
from everloop.package import Target, dockerfile, write_package
from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion

ROOT = Path(__file__).parents[3]
PIPELINES = ROOT / "pipelines"
FILES = {
    "model.onnx": b"graph",
    "manifest.json": b"{}",
    "golden.json": b"[]",
    "model/MLmodel": b"logged",
}
GRAPH = hashlib.sha256(FILES["model.onnx"]).hexdigest()


def download(version: ModelVersion, folder: Path) -> None:
    for path, data in FILES.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)


def away(version: ModelVersion, folder: Path) -> None:
    raise EverloopError("UNAVAILABLE", "the gateway is away")


def refused(
    version: ModelVersion,
    folder: Path,
    pipelines: Path = PIPELINES,
    download: Callable[[ModelVersion, Path], None] = download,
) -> str:
    with pytest.raises(EverloopError) as caught:
        write_package(version, download, pipelines, folder)
    return caught.value.reason


def test_only_an_export_of_a_known_pipeline_is_packaged(tmp_path: Path) -> None:
    version = ModelVersion(model="flight-delays", version=2, run_id="run", onnx_sha256="ab")
    folder = tmp_path / "package"
    assert refused(ModelVersion(model="flight-delays", version=2), folder) == "EXPORT_MISSING"
    assert refused(version, folder, tmp_path) == "PIPELINE_NOT_FOUND"
    assert refused(version, tmp_path) == "FOLDER_EXISTS"
    assert list(tmp_path.iterdir()) == []


def test_a_package_holds_what_the_image_reads_and_no_more(tmp_path: Path) -> None:
    version = ModelVersion(model="flight-delays", version=2, run_id="run", onnx_sha256=GRAPH)
    write_package(version, download, PIPELINES, tmp_path / "package")
    model = tmp_path / "package" / "model"
    assert {path.name for path in model.iterdir()} == {
        *("model.onnx", "manifest.json", "golden.json"),
        *("pipeline.yaml", "version.json"),
    }
    assert (model / "model.onnx").read_bytes() == FILES["model.onnx"]


def test_nothing_is_left_of_what_cannot_be_had_or_is_not_what_was_registered(
    tmp_path: Path,
) -> None:
    version = ModelVersion(model="flight-delays", version=2, run_id="run", onnx_sha256="ab")
    assert refused(version, tmp_path / "package", download=away) == "UNAVAILABLE"
    assert refused(version, tmp_path / "package") == "CHECKSUM_MISMATCH"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", Target)
def test_the_image_of_a_package_stands_on_one_that_is_built(target: Target) -> None:
    text = dockerfile(ModelVersion(model="flight-delays", version=2, run_id="run"), target)
    (base,) = (line for line in text.splitlines() if line.startswith("ARG SERVER="))
    name = base.partition("=")[2].partition(":")[0].removeprefix("everloop-")
    server = (ROOT / "services/inference/Dockerfile").read_text()
    assert f"FROM ${{BASE}} AS {name}\n" in server
    assert name in (ROOT / "tools/images.sh").read_text()
