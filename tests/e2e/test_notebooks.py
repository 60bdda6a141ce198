"""The notebooks run as they are, against the stack of the demo's run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from demo_run import Run
from notebook_run import NOTEBOOKS, code_of, main


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["explore", "train", "compare", "drift"])
def test_a_notebook_runs_to_its_end(run: Run, name: str) -> None:
    outcome = run.notebooks[name]
    assert outcome.code == 0, outcome.output


def test_no_notebook_is_kept_with_what_it_gave() -> None:
    assert len(NOTEBOOKS) == 4
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]
        assert code_of(path)


def test_a_cell_that_fails_fails_its_notebook(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    cells = [
        {"cell_type": "markdown", "source": ["not code"]},
        {"cell_type": "code", "source": ["value = 1\n", "assert value"]},
        {"cell_type": "code", "source": ["raise ValueError(value)"]},
    ]
    path.write_text(json.dumps({"cells": cells}))
    with pytest.raises(ValueError, match="1"):
        main(path)
