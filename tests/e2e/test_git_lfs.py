"""The whole loop on data that Git LFS keeps: from records to a model that serves, and the rows by stock git."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from parcels import NAME, RECORDS, pipeline, records

from everloop import Everloop, EverloopError, stack

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        shutil.which("git-lfs") is None, reason="no command git-lfs (apt-get install git-lfs)"
    ),
]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    pipelines, home = tmp_path / "pipelines", tmp_path / "home"
    pipelines.mkdir()
    (pipelines / f"{NAME}.yaml").write_text(yaml.safe_dump(pipeline(versioning="git-lfs")))
    try:
        stack.up(home, only=("ingest", "trainer", "inference"), pipelines=pipelines)
        yield home
    finally:
        stack.down(home)


def test_the_loop_closes_without_dvc(home: Path, tmp_path: Path) -> None:
    with Everloop.connect(home) as everloop:
        assert everloop.push(NAME, records()).accepted == RECORDS
        version = everloop.cut(NAME)
        assert (version.versioning, version.rows) == ("git-lfs", RECORDS)
        deadline = time.monotonic() + 300
        while True:
            try:
                answer = everloop.predict(NAME, [{"parcel": "new", "weight": 9.5}])
                break
            except EverloopError as error:  # it is being trained
                assert time.monotonic() < deadline, error
                time.sleep(0.5)
        assert answer.version == 1
        assert everloop.lineage(NAME, 1).version.dataset_tag == version.git_tag

    filters = {
        f"GIT_CONFIG_{part}_{number}": value
        for number, (key, command) in enumerate(
            [("smudge", "git-lfs smudge -- %f"), ("clean", "git-lfs clean -- %f")]
        )
        for part, value in (("KEY", f"filter.lfs.{key}"), ("VALUE", command))
    }
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "--quiet", "--branch", version.git_tag, version.git_url, str(clone)],
        env=os.environ | filters | {"GIT_CONFIG_COUNT": "2"},
        check=True,
        capture_output=True,
    )
    for item in version.objects:
        assert hashlib.md5((clone / item.path).read_bytes()).hexdigest() == item.md5
    assert pq.read_table(clone / version.data.path).num_rows == RECORDS
