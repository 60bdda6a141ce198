"""A dataset version as git and DVC have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from everloop.demo.lineage import look_up_tag

TAG = "flight-delays/v1"
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    def git(*arguments: str) -> None:
        command = ["git", "-C", str(tmp_path), *IDENTITY, *arguments]
        subprocess.run(command, check=True, capture_output=True)

    pointer = tmp_path / "flight-delays" / "rows.parquet.dvc"
    pointer.parent.mkdir()
    pointer.write_text("outs:\n- md5: aabbcc\n  size: 7\n  path: rows.parquet\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "Cut flight-delays v1")
    git("tag", "-a", TAG, "-m", "a tag of its own")
    return tmp_path


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_tag_gives_its_commit_and_the_data_s_checksums(repository: Path, prefix):
    found = look_up_tag(f"{prefix}{repository}", TAG)
    head = subprocess.run(
        ["git", "-C", str(repository), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert found.commit == head.stdout.strip()
    assert found.subject == "Cut flight-delays v1"
    assert found.md5 == {"flight-delays/rows.parquet": "aabbcc"}


def test_a_tag_that_is_not_there_is_said(repository: Path):
    with pytest.raises(LookupError, match="v9"):
        look_up_tag(str(repository), "flight-delays/v9")


def test_a_repository_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(LookupError, match="nowhere"):
        look_up_tag(str(tmp_path / "nowhere"), TAG)
