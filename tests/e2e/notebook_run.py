"""Runs the code of a notebook, cell after cell, in a process of its own: `python notebook_run.py NOTEBOOK`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from readme_run import Outcome

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
SECONDS = 300.0


def run_all(home: Path) -> Mapping[str, Outcome]:
    """Runs every notebook against the stack at `home`."""
    environment = {**os.environ, "EVERLOOP_HOME": str(home), "MPLBACKEND": "Agg"}
    outcomes = {}
    for path in NOTEBOOKS:
        done = subprocess.run(
            [sys.executable, __file__, str(path)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        outcomes[path.stem] = Outcome(done.returncode, done.stdout + done.stderr)
    return outcomes


def code_of(path: Path) -> list[str]:
    """The code cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def main(path: Path) -> None:
    """Runs one notebook; the first cell that fails ends it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, code in enumerate(code_of(path), start=1):
        exec(compile(code, f"{path.name}, code cell {number}", "exec"), names)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
