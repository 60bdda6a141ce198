"""The data repository with the real git and DVC, on a remote that is a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from dvc.repo import Repo
from pyarrow import fs

from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.adapters.git import Git
from everloop_ingest.domain import State, Version
from everloop_runtime.errors import EverloopError, Kind


def version(number: int, pipeline: str = "parcels") -> Version:
    return Version(
        pipeline, number, State.CUTTING, f"r{number}", datetime(2026, 3, number, tzinfo=UTC), 1
    )


class Place:
    """A repository and its remote on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.remote = folder / "remote"
        self.remote.mkdir()
        self.root = folder / "datasets"
        self.open()

    def open(self) -> None:
        self.repository = DvcRepository(self.root, str(self.remote), {}, {}, fs.LocalFileSystem())

    def publish(self, number: int, content: bytes, pipeline: str = "parcels") -> Any:
        rows = self.folder / "rows.parquet"
        rows.write_bytes(content)
        return self.repository.publish(version(number, pipeline), rows)

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def get(self, path: str, tag: str) -> bytes:
        """What the stock command line gets, from another folder."""
        target = self.folder / "elsewhere"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        command = [str(Path(sys.executable).with_name("dvc")), "get", str(self.root), path]
        subprocess.run([*command, "--rev", tag], cwd=target, check=True, capture_output=True)
        return (target / Path(path).name).read_bytes()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_versions_of_several_pipelines_share_the_repository(place: Place) -> None:
    first = place.publish(1, b"one")
    other = place.publish(1, b"other", "letters")
    second = place.publish(2, b"two")
    assert (first.path, first.tag) == ("parcels/rows.parquet", "parcels/v1")
    assert first.md5 == hashlib.md5(b"one").hexdigest()
    assert Path(first.uri).read_bytes() == b"one"
    assert place.get(first.path, first.tag) == b"one"
    assert place.get(second.path, second.tag) == b"two"
    assert place.get(other.path, other.tag) == b"other"
    assert place.git("rev-parse", "parcels/v1^{commit}") == first.commit
    assert place.git("status", "--porcelain") == ""
    assert "r2" in place.git("log", "-1", "--format=%B", "parcels/v2")


def test_the_same_content_again_is_a_version_of_its_own(place: Place) -> None:
    first, second = place.publish(1, b"same"), place.publish(2, b"same")
    assert first.md5 == second.md5
    assert place.get(second.path, "parcels/v2") == b"same"


STEPS = [
    (Repo, "add", "after"),
    (Git, "commit", "before"),
    (Git, "commit", "after"),
    (Git, "tag", "before"),
    (Git, "tag", "after"),
    (Repo, "push", "before"),
    (Repo, "push", "after"),
    (DvcRepository, "_drop_local", "after"),
]


@pytest.mark.parametrize(
    ("owner", "method", "when"), STEPS, ids=lambda v: getattr(v, "__name__", v)
)
def test_a_crash_at_any_step_ends_in_the_same_tag(
    place: Place, crash: Any, owner: type, method: str, when: str
) -> None:
    place.publish(1, b"one")
    with pytest.raises(crash(owner, method, when)):
        place.publish(2, b"two")
    tagged = place.git("tag", "--list", "parcels/v2", "--format=%(objectname)")
    (place.root / ".git" / "index.lock").touch()  # as a killed git leaves it
    place.open()
    file = place.publish(2, b"two")
    assert place.get(file.path, "parcels/v2") == b"two"
    assert place.git("rev-parse", "parcels/v2") == file.commit
    assert not tagged or tagged == file.commit
    assert place.git("rev-list", "--count", "main") == "3"
    assert place.publish(2, b"two") == file


def test_the_users_git_configuration_does_not_matter(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = place.folder / "gitconfig"
    configuration.write_text(
        "[user]\nname = Somebody\n[commit]\ngpgsign = true\n[tag]\ngpgsign = true\n"
        "[core]\nhooksPath = /nowhere\n[init]\ndefaultBranch = trunk\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(configuration))
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    shutil.rmtree(place.root)
    place.open()
    place.publish(1, b"one")
    monkeypatch.delenv("GIT_DIR")
    assert place.git("log", "-1", "--format=%an %ae") == "Everloop everloop@localhost"
    assert place.git("branch", "--show-current") == "main"


def test_credentials_stay_out_of_git(tmp_path: Path) -> None:
    root = tmp_path / "datasets"
    for endpoint in ("http://one", "http://two"):
        DvcRepository(
            root,
            "s3://bucket/dvc",
            {"endpointurl": endpoint},
            {"access_key_id": "the-key", "secret_access_key": "the-secret"},
            fs.LocalFileSystem(),
        )
    tracked = subprocess.run(
        ["git", "grep", "-n", ".", "main"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    assert "endpointurl = http://two" in tracked
    assert "the-key" not in tracked
    assert "the-secret" not in tracked
    local = root / ".dvc" / "config.local"
    assert "the-secret" in local.read_text()
    assert stat.S_IMODE(local.stat().st_mode) == 0o600


def test_what_is_pushed_leaves_the_disk(place: Place) -> None:
    place.publish(1, os.urandom(100_000))
    size = sum(p.stat().st_size for p in place.root.rglob("*") if p.is_file())
    assert size < 100_000


def test_an_object_that_the_remote_lost_is_pushed_again(place: Place) -> None:
    first = place.publish(1, b"one")
    Path(first.uri).unlink()
    try:
        place.publish(1, b"one")
    except EverloopError as error:
        assert error.kind is Kind.UNAVAILABLE  # DVC believed that it was there
        place.publish(1, b"one")
    assert Path(first.uri).read_bytes() == b"one"
