"""Evidently's own virtual environment, made once and kept: it wants a pandas before 3."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from bench.report import OUT, ROOT

__all__ = ["evidently"]

UV = ROOT / ".venv" / "bin" / "uv"
PACKAGES = ("evidently==0.7.23", "pandas<3", "pyarrow<26", "psutil")


def evidently() -> Path:
    """Returns the Python that has Evidently; makes its environment where it is not there or of other versions.

    Raises:
        subprocess.CalledProcessError: that failed.
    """
    folder = OUT / "peers" / "evidently"
    python, installed = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(PACKAGES) + "\n"
    if not installed.exists() or installed.read_text() != wanted:
        print(f"installing {', '.join(PACKAGES)}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        for arguments in (
            ("venv", "--quiet", "--python", sys.executable, str(folder)),
            ("pip", "install", "--quiet", "--python", str(python), *PACKAGES),
        ):
            subprocess.run([str(UV), *arguments], check=True)
        installed.write_text(wanted)
    return python
