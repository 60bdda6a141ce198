"""A model by itself: the build context of an image that serves one version, without the platform.

flight-delays-3/
  Dockerfile              FROM everloop-model-server, or everloop-model-lambda
  task-definition.json    for Amazon ECS; function.json for AWS Lambda in its place
  model/                  the graph, its manifest, golden rows, the pipeline, and which version it is
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from enum import StrEnum
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everloop.errors import EverloopError
from everloop_contracts.artifacts import EXPORT

if TYPE_CHECKING:
    from collections.abc import Callable

    from everloop_contracts.stubs.everloop.registry.v1.registry_pb2 import ModelVersion

__all__ = ["Target", "dockerfile", "task_definition", "write_package"]


class Target(StrEnum):
    """What runs a package."""

    CONTAINER = "container"
    """A container engine: Docker, EC2, ECS. The image listens on ports."""
    LAMBDA = "lambda"
    """AWS Lambda. The image asks for events."""


_SERVED = (EXPORT, "manifest.json", "golden.json")
"""What the image reads of a version's files: it has nothing that could load the logged model."""
_DOCKERFILE = """\
# {model} version {version}: docker build --tag {model}:{version} .
ARG SERVER={server}:{everloop}
FROM ${{SERVER}}
COPY model /opt/model
LABEL org.opencontainers.image.title="{model}" \\
      org.opencontainers.image.version="{version}" \\
      org.mlflow.run="{run_id}"
"""


def write_package(
    version: ModelVersion,
    download: Callable[[ModelVersion, Path], None],
    pipelines: Path,
    folder: Path,
    target: Target = Target.CONTAINER,
) -> None:
    """Writes everything that serving the version needs into a new folder.

    Args:
        version: From the registry.
        download: See `Everloop.download`.
        pipelines: Folder of pipeline specifications.
        folder: Must not exist.
        target: What is to run it.

    Raises:
        EverloopError: reason EXPORT_MISSING, PIPELINE_NOT_FOUND, CHECKSUM_MISMATCH or FOLDER_EXISTS; or its files
            cannot be had.
    """
    what = f"{version.model} version {version.version}"
    if not version.onnx_sha256:
        raise EverloopError("EXPORT_MISSING", f"{what} has no ONNX export to package")
    if folder.exists():
        raise EverloopError("FOLDER_EXISTS", f"{folder} is there already", "name another with --to")
    specification = _specification(version.model, pipelines)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch, "package")
        model = made / "model"
        model.mkdir(parents=True)
        everything = Path(scratch, "files")
        everything.mkdir()
        download(version, everything)
        for name in _SERVED:
            shutil.move(everything / name, model)
        if hashlib.sha256((model / EXPORT).read_bytes()).hexdigest() != version.onnx_sha256:
            raise EverloopError(
                "CHECKSUM_MISMATCH", f"the graph of {what} is not the one that was registered"
            )
        shutil.copy(specification, model / "pipeline.yaml")
        wanted = {
            "model": version.model,
            "version": version.version,
            "run_id": version.run_id,
            "sha256": version.onnx_sha256,
        }
        (model / "version.json").write_text(json.dumps(wanted, indent=2) + "\n")
        (made / "Dockerfile").write_text(dockerfile(version, target))
        name, description = (
            ("function.json", _function(version))
            if target is Target.LAMBDA
            else ("task-definition.json", task_definition(version))
        )
        (made / name).write_text(json.dumps(description, indent=2) + "\n")
        made.rename(folder)


def dockerfile(version: ModelVersion, target: Target = Target.CONTAINER) -> str:
    """Returns the Dockerfile of a package."""
    return _DOCKERFILE.format(
        server="everloop-model-lambda" if target is Target.LAMBDA else "everloop-model-server",
        everloop=installed("everloop"),
        model=version.model,
        version=version.version,
        run_id=version.run_id,
    )


def _specification(model: str, pipelines: Path) -> Path:
    from everloop_contracts.pipeline import PipelineError, load_pipeline

    for path in sorted(pipelines.glob("*.yaml")):
        try:
            if load_pipeline(path).name == model:
                return path
        except PipelineError:
            continue
    raise EverloopError(
        "PIPELINE_NOT_FOUND",
        f"no pipeline of {pipelines} is called {model}",
        "set EVERLOOP_PIPELINES_DIR to the folder of its file",
    )


def task_definition(version: ModelVersion) -> dict[str, Any]:
    """For `aws ecs register-task-definition --cli-input-json`; the registry goes in front of the image's name."""
    return {
        "family": version.model,
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "1024",
        "memory": "2048",
        "volumes": [{"name": "tmp"}, {"name": "data"}],
        "containerDefinitions": [
            {
                "name": "model",
                "image": f"{version.model}:{version.version}",
                "essential": True,
                "user": "10001:10001",
                "readonlyRootFilesystem": True,
                "mountPoints": [
                    {"sourceVolume": "tmp", "containerPath": "/tmp"},
                    {"sourceVolume": "data", "containerPath": "/var/lib/everloop"},
                ],
                "portMappings": [
                    {"containerPort": 8080, "appProtocol": "http"},
                    {"containerPort": 8081, "appProtocol": "grpc"},
                ],
                "healthCheck": {
                    "command": ["CMD", "python", "-m", "everloop_runtime.health", "127.0.0.1:8081"],
                    "interval": 10,
                    "timeout": 5,
                    "startPeriod": 60,
                },
                "stopTimeout": 60,
            }
        ],
    }


def _function(version: ModelVersion) -> dict[str, object]:
    """For `aws lambda create-function --cli-input-json`, with `--role` and `--code ImageUri=…` beside it."""
    return {
        "FunctionName": version.model,
        "PackageType": "Image",
        "MemorySize": 2048,
        "Timeout": 30,
        "EphemeralStorage": {"Size": 1024},
    }
