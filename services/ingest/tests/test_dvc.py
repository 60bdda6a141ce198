"""The data repository with the real git and DVC, on a remote that is a folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from dvc.repo import Repo
from dvc_data.index import DataIndexDirError
from pyarrow import fs
from services.ingest.tests.fakes import lost_turn

from everloop_ingest.adapters.dvc import DvcRepository
from everloop_ingest.adapters.git import Git
from everloop_ingest.domain import Part, State, Version
from everloop_runtime.errors import EverloopError, Kind


def version(number: int, pipeline: str = "parcels") -> Version:
    return Version(
        pipeline, number, State.CUTTING, f"r{number}", datetime(2026, 3, number, tzinfo=UTC), 1
    )


def part_of(content: bytes) -> Part:
    time = datetime(2026, 3, 1, tzinfo=UTC)
    md5, sha256 = (hashlib.new(name, content).hexdigest() for name in ("md5", "sha256"))
    return Part(md5, sha256, len(content), 1, 0, time, "a", time, "state", "columns")


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

    def publish(self, number: int, *contents: bytes, pipeline: str = "parcels") -> Any:
        """Publishes a version of parts with these contents; hands over those that no version had before."""
        new = {}
        for content in contents:
            part = part_of(content)
            if not Path(self.repository.uri(part)).exists():
                new[part.md5] = self.folder / part.md5
                new[part.md5].write_bytes(content)
        parts = [part_of(content) for content in contents]
        return self.repository.publish(version(number, pipeline), parts, new, lambda: None)

    def git(self, *arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True
        ).stdout.strip()

    def get(self, path: str, tag: str) -> bytes:
        """What stock DVC gets, from another folder; the command line is `Repo.get` after a second of imports."""
        target = self.folder / "elsewhere"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        Repo.get(str(self.root), path, str(target / Path(path).name), rev=tag)
        files = sorted((target / Path(path).name).iterdir())
        return b" ".join(file.read_bytes() for file in files)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_versions_of_several_pipelines_share_the_repository(place: Place) -> None:
    first = place.publish(1, b"one")
    other = place.publish(1, b"other", pipeline="letters")
    second = place.publish(2, b"one", b"two")
    assert (first.path, first.tag) == ("parcels/rows", "parcels/v1")
    listing = Path(first.uri).read_bytes()
    assert first.md5 == hashlib.md5(listing).hexdigest() + ".dir"
    one = hashlib.md5(b"one").hexdigest()
    assert orjson.loads(listing) == [{"md5": one, "relpath": "part-00000.parquet"}]
    assert (first.size_bytes, second.size_bytes) == (3, 6)
    assert place.get(first.path, first.tag) == b"one"
    assert place.get(second.path, second.tag) == b"one two"
    assert place.get(other.path, other.tag) == b"other"
    assert place.git("rev-parse", "parcels/v1^{commit}") == first.commit
    assert place.git("status", "--porcelain") == ""
    assert "r2" in place.git("log", "-1", "--format=%B", "parcels/v2")


def test_the_same_content_again_is_a_version_of_its_own(place: Place) -> None:
    first, second = place.publish(1, b"same"), place.publish(2, b"same")
    assert first.md5 == second.md5
    assert place.get(second.path, "parcels/v2") == b"same"


STEPS = [
    (Git, "commit", "before"),
    (Git, "commit", "after"),
    (Git, "tag", "before"),
    (Git, "tag", "after"),
    (Repo, "push", "before"),
    (Repo, "push", "after"),
    (DvcRepository, "_point_to", "before"),
    (DvcRepository, "_point_to", "after"),
    (DvcRepository, "_check", "after"),
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
    lost = Path(place.repository.uri(part_of(b"one")))
    lost.unlink()
    try:
        place.publish(1, b"one")
    except EverloopError as error:
        assert error.kind is Kind.UNAVAILABLE  # DVC believed that it was there
        place.publish(1, b"one")
    assert lost.read_bytes() == b"one"
    assert place.get(first.path, first.tag) == b"one"


@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_git_that_fails_is_an_outage_that_a_repeat_mends(
    place: Place, broken_git: Callable[[str], AbstractContextManager[None]], how: str
) -> None:
    with broken_git(how), pytest.raises(EverloopError) as caught:
        place.publish(1, b"one")
    assert (caught.value.kind, caught.value.reason) == (
        Kind.UNAVAILABLE,
        "DATA_REPOSITORY_UNAVAILABLE",
    )
    first = place.publish(1, b"one")
    assert place.get(first.path, first.tag) == b"one"


def test_only_what_is_new_is_sent(place: Place) -> None:
    place.publish(1, b"one", b"two")
    before = {path: path.stat().st_mtime_ns for path in place.remote.rglob("*") if path.is_file()}
    place.publish(2, b"one", b"between", b"two")
    after = {path: path.stat().st_mtime_ns for path in place.remote.rglob("*") if path.is_file()}
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2  # the part and the listing


def test_parts_are_fetched_and_one_that_is_gone_is_named(place: Place, tmp_path: Path) -> None:
    place.publish(1, b"one", b"two")
    parts = [part_of(b"two"), part_of(b"one")]
    found = place.repository.fetch(parts, tmp_path)
    assert [path.read_bytes() for path in found] == [b"two", b"one"]
    gone = place.repository.uri(parts[0])
    Path(gone).unlink()
    with pytest.raises(EverloopError, match=gone) as caught:
        place.repository.fetch(parts, tmp_path)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "PART_LOST")


def test_what_only_earlier_versions_hold_is_deleted_by_stock_dvc(place: Place) -> None:
    """As the README says, where records of somebody are to leave earlier versions as well."""
    place.publish(1, b"one", b"somebody's", pipeline="letters")
    first = place.publish(1, b"one", b"somebody's")
    second = place.publish(2, b"one", b"two")
    place.publish(2, b"one", pipeline="letters")
    command = [str(Path(sys.executable).with_name("dvc")), "gc", "--workspace", "--cloud"]
    subprocess.run([*command, "--force"], cwd=place.root, check=True, capture_output=True)
    left = {path.read_bytes() for path in place.remote.rglob("*") if path.is_file()}
    assert {b"one", b"two"} <= left
    assert b"somebody's" not in left
    assert place.get(second.path, second.tag) == b"one two"
    with pytest.raises(DataIndexDirError):
        place.get(first.path, first.tag)
    third = place.publish(3, b"one", b"two", b"three")
    assert place.get(third.path, third.tag) == b"one two three"


def test_a_repository_of_before_there_were_parts_goes_on(place: Place) -> None:
    """Version 1 is one file that DVC has added itself."""
    folder = place.root / "parcels"
    folder.mkdir()
    (folder / "rows.parquet").write_bytes(b"one file")
    repo = Repo(str(place.root))
    repo.add(str(folder / "rows.parquet"))
    repo.push(remote="storage")
    repo.close()
    place.git("add", ".")
    place.git("commit", "-qm", "Cut parcels/v1")
    place.git("tag", "parcels/v1")
    (folder / "rows.parquet").unlink()
    second = place.publish(2, b"two")
    assert place.git("ls-tree", "--name-only", "parcels/v2:parcels").split() == [
        *(".gitignore", "rows.dvc")
    ]
    assert place.get(second.path, second.tag) == b"two"
    assert place.publish(2, b"two") == second
    target = place.folder / "old"
    command = [str(Path(sys.executable).with_name("dvc")), "get", str(place.root)]
    subprocess.run(
        [*command, "parcels/rows.parquet", "--rev", "parcels/v1", "-o", str(target)], check=True
    )
    assert target.read_bytes() == b"one file"


def test_who_lost_its_turn_publishes_nothing(place: Place) -> None:
    place.publish(1, b"one")
    before = place.git("show-ref")

    lost = lost_turn(place.root.with_name("datasets.lock"))
    with pytest.raises(EverloopError):
        place.repository.publish(version(2), [part_of(b"one")], {}, lost)
    assert place.git("show-ref") == before


def test_a_clone_gets_a_tag_by_stock_dvc_pull_and_its_hashes_match(place: Place) -> None:
    contents = [b"zero", b"one", b"two"]
    first = place.publish(1, *contents)
    place.publish(2, b"other")
    clone = place.folder / "clone"
    place.git("clone", "--quiet", place.repository.url, str(clone))
    dvc = str(Path(sys.executable).with_name("dvc"))
    for command in (["git", "checkout", "--quiet", first.tag], [dvc, "pull", "parcels/rows"]):
        subprocess.run(command, cwd=clone, check=True, capture_output=True)
    files = sorted((clone / "parcels" / "rows").iterdir())
    assert [file.read_bytes() for file in files] == contents
    pulled = [hashlib.md5(file.read_bytes()).hexdigest() for file in files]
    listing = [{"md5": md5, "relpath": file.name} for md5, file in zip(pulled, files, strict=True)]
    # As DVC hashes a directory: its listing as JSON, keys in order.
    text = json.dumps(listing, sort_keys=True).encode()
    assert first.md5 == hashlib.md5(text).hexdigest() + ".dir"
    status = subprocess.run([dvc, "status"], cwd=clone, check=True, capture_output=True, text=True)
    assert "up to date" in status.stdout
