"""Stock clients of Triton, KServe and MLServer against a replica, unmodified.

They pin protobuf below 7, so that each runs in an environment of its own, which is built once below `.everloop`. The
suites beside this file are pytest modules for those environments; they ask the replica that this test starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from everloop_features.inputs import feeds_from_rows
from everloop_inference.fakes import INPUTS, ROW

SUITES = Path(__file__).parent / "suites"
ROOT = Path(__file__).resolve().parents[4]
PACKAGES = {
    "triton": ["tritonclient[grpc,http]==2.73.0", "ml_dtypes"],
    "kserve": ["kserve==0.21.0"],
    "mlserver": ["mlserver==1.7.1", "pandas<3"],
}
TESTS = ["pytest==9.2.0", "httpx==0.28.1"]

# Numbers that every data type of the protocol holds exactly.
ROWS: list[dict[str, Any]] = [
    {**ROW, "distance": 96.0, "age": 3.0, "stops": 1},
    {**ROW, "distance": 112.0, "age": 4.0, "stops": 2, "carrier": "UA", "weekend": False},
    {**ROW, "distance": 64.0, "age": 0.0, "stops": 0, "carrier": "zürich", "flight_id": "f-2"},
]


@pytest.fixture(scope="session")
def environment() -> Callable[[str], Path]:
    """Builds an environment, or finds it; skips where its packages cannot be had."""

    def build(name: str) -> Path:
        packages = [*PACKAGES[name], *TESTS]
        home = Path(os.environ.get("EVERLOOP_HOME", ROOT / ".everloop"))
        mark = hashlib.sha256(json.dumps([packages, sys.version]).encode()).hexdigest()[:12]
        folder = home / "cache" / "clients" / f"{name}-{mark}"
        python = folder / "bin" / "python"
        if (folder / "ready").exists():
            return python
        uv = str(Path(sys.executable).parent / "uv")
        commands: list[list[str]] = [
            [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
            [uv, "pip", "install", "--quiet", "--python", str(python), *packages],
        ]
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=600)
            except (OSError, subprocess.TimeoutExpired) as error:
                pytest.skip(f"the environment of {name} cannot be built: {error}")
            if done.returncode:
                last = done.stderr.strip().splitlines()[-1:]
                pytest.skip(f"the environment of {name} cannot be built: {' '.join(last)}")
        (folder / "ready").touch()
        return python

    return build


@pytest.mark.clients
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_stock_client_works_unmodified(
    name: str, world: Any, environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = environment(name)
    world.publish(1)
    model = world.replica().models.get("flights")
    columns = feeds_from_rows(ROWS, INPUTS)
    facts = {
        "http": world.settings.http_address,
        "grpc": world.settings.predict_grpc_address,
        "columns": {name: values.ravel().tolist() for name, values in columns.items()},
        "rows": ROWS,
        "probabilities": model.run(columns).tolist(),
        "labels": ["true" if row[1] >= 0.5 else "false" for row in model.run(columns)],
    }
    (tmp_path / "facts.json").write_text(json.dumps(facts))
    suite = SUITES / f"{name}_suite.py"
    done = subprocess.run(
        [
            *(python, "-m", "pytest", "-q", "-c", os.devnull, "--noconftest"),
            *("-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning", suite),
        ],
        env={**os.environ, "EVERLOOP_FACTS": str(tmp_path / "facts.json"), "PYTHONPATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout
