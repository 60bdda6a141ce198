"""Versions kept by the real Git LFS, fetched by stock git from another folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from services.ingest.tests.fakes import lost_turn

from everloop_ingest.adapters.git import Git
from everloop_ingest.adapters.lfs import LfsRepository
from everloop_ingest.adopt_pipelines import check_versioning
from everloop_ingest.domain import ObjectFile, Part, State, Version
from everloop_runtime.errors import EverloopError, Kind

with_lfs = pytest.mark.skipif(
    shutil.which("git-lfs") is None, reason="no command git-lfs (apt-get install git-lfs)"
)
FILTER = """
[filter "lfs"]
    clean = git-lfs clean -- %f
    smudge = git-lfs smudge -- %f
    process = git-lfs filter-process
    required = true
"""
"""What `git lfs install` writes into the user's configuration."""
DELETE_EARLIER = "find lfs/objects -type f | grep -vF \"$(git lfs ls-files -l main | cut -d' ' -f1)\" | xargs rm -f"
"""What the README shows."""


def version(number: int) -> Version:
    return Version(
        "parcels", number, State.CUTTING, f"r{number}", datetime(2026, 3, number, tzinfo=UTC), 1
    )


def part_of(content: bytes) -> Part:
    time = datetime(2026, 3, 1, tzinfo=UTC)
    md5, sha256 = (hashlib.new(name, content).hexdigest() for name in ("md5", "sha256"))
    return Part(md5, sha256, len(content), 1, 0, time, "a", time, "state", "columns")


class Place:
    """A repository, and a user of it somewhere else."""

    def __init__(self, folder: Path, max_bytes: int = 2**20) -> None:
        self.folder = folder
        self.root = folder / "data of parcels" / "parcels.git"
        self.max_bytes = max_bytes
        self.seen: set[str] = set()
        self.open()

    def open(self) -> None:
        self.repository = LfsRepository(self.root, self.max_bytes)

    def publish(self, number: int, *contents: bytes) -> ObjectFile:
        """Publishes a version of parts with these contents, as new what no version before had."""
        parts = [part_of(content) for content in contents]
        new = {}
        for part, content in zip(parts, contents, strict=True):
            if part.md5 not in self.seen:
                new[part.md5] = self.folder / part.md5
                new[part.md5].write_bytes(content)
        file = self.repository.publish(version(number), parts, new, lambda: None)
        self.seen |= new.keys()
        return file

    def run(self, command: str, folder: Path) -> str:
        """A line of a user's shell."""
        configuration = self.folder / "gitconfig"
        configuration.write_text(FILTER)
        environment = os.environ | {"GIT_CONFIG_GLOBAL": str(configuration)}
        done = subprocess.run(
            ["sh", "-euc", command],
            cwd=folder,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def get(self, file: ObjectFile) -> bytes:
        """What a user gets who clones the repository and checks a tag out."""
        clone = self.folder / "elsewhere"
        shutil.rmtree(clone, ignore_errors=True)
        self.run(f"git clone -q '{self.repository.url}' elsewhere", self.folder)
        self.run(f"git checkout -q {file.tag}", clone)
        assert self.run("git rev-parse HEAD", clone) == file.commit
        self.run(f"md5sum --check {file.path}.md5", clone)
        listing = (clone / f"{file.path}.md5").read_bytes()
        assert file.md5 == hashlib.md5(listing).hexdigest() + ".dir"
        return b" ".join(path.read_bytes() for path in sorted((clone / file.path).iterdir()))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@with_lfs
def test_anyone_with_git_and_git_lfs_gets_the_rows_of_a_tag(place: Place) -> None:
    first = place.publish(1, b"one")
    second = place.publish(2, b"zero", b"one", b"two")
    assert (first.tag, first.size_bytes, second.size_bytes) == ("parcels/v1", 3, 10)
    assert place.get(first) == b"one"
    assert place.get(second) == b"zero one two"
    assert "Cause: r2" in place.run("git log -1 --format=%B parcels/v2", place.root)
    tracked = place.run("git lfs ls-files --long main", place.root).splitlines()
    assert [line.split()[0] for line in tracked] == [
        part_of(content).sha256 for content in (b"zero", b"one", b"two")
    ]


@with_lfs
def test_a_part_that_versions_share_is_kept_once(place: Place) -> None:
    place.publish(1, b"one", b"two")
    place.publish(2, b"one", b"between", b"two")
    kept = [path for path in (place.root / "lfs" / "objects").rglob("*") if path.is_file()]
    assert len(kept) == 3


@with_lfs
def test_the_same_content_again_is_a_version_of_its_own(place: Place) -> None:
    first, second = place.publish(1, b"same"), place.publish(2, b"same")
    assert (first.md5, first.commit) == (second.md5, second.commit)
    assert place.get(second) == b"same"


STEPS = [
    (Git, "keep_by_lfs", "before"),
    (Git, "keep_by_lfs", "after"),
    (Git, "commit_tree", "before"),
    (Git, "commit_tree", "after"),
    (Git, "tag", "before"),
    (Git, "tag", "after"),
]


@with_lfs
@pytest.mark.parametrize(
    ("owner", "method", "when"), STEPS, ids=lambda v: getattr(v, "__name__", v)
)
def test_a_crash_at_any_step_ends_in_the_same_tag(
    place: Place, crash: Any, owner: type, method: str, when: str
) -> None:
    place.publish(1, b"one")
    with pytest.raises(crash(owner, method, when)):
        place.publish(2, b"two")
    tagged = place.run("git tag --list parcels/v2 --format='%(objectname)'", place.root)
    (place.root / "refs" / "heads" / "main.lock").touch()  # as a killed git leaves it
    place.open()
    file = place.publish(2, b"two")
    assert place.get(file) == b"two"
    assert not tagged or tagged == file.commit
    assert place.run("git rev-list --count main", place.root) == "2"
    assert place.publish(2, b"two") == file


@with_lfs
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
    assert place.get(place.publish(1, b"one")) == b"one"


@with_lfs
def test_parts_are_fetched_and_one_that_is_gone_is_named(place: Place, tmp_path: Path) -> None:
    place.publish(1, b"one", b"two")
    parts = [part_of(b"two"), part_of(b"one")]
    found = place.repository.fetch(parts, tmp_path)
    assert [path.read_bytes() for path in found] == [b"two", b"one"]
    [gone] = place.root.glob(f"lfs/objects/*/*/{parts[0].sha256}")
    gone.unlink()
    with pytest.raises(EverloopError, match=parts[0].sha256) as caught:
        place.repository.fetch(parts, tmp_path)
    assert (caught.value.kind, caught.value.reason) == (Kind.UNAVAILABLE, "PART_LOST")


@with_lfs
def test_more_bytes_than_may_be_are_refused_and_change_nothing(tmp_path: Path) -> None:
    place = Place(tmp_path, max_bytes=10)
    first = place.publish(1, b"123456")
    with pytest.raises(EverloopError, match="EVERLOOP_LFS_MAX_BYTES") as caught:
        place.publish(2, b"123456", b"12345")
    assert (caught.value.kind, caught.value.reason) == (Kind.EXHAUSTED, "LFS_LIMIT_REACHED")
    assert place.run("git tag", place.root) == first.tag
    assert place.get(place.publish(2, b"123456", b"1234")) == b"123456 1234"


@with_lfs
def test_what_only_earlier_versions_hold_is_deleted_as_the_readme_says(place: Place) -> None:
    readme = Path(__file__).parents[1] / "README.md"
    assert DELETE_EARLIER in readme.read_text()
    first = place.publish(1, b"one", b"somebody's")
    second = place.publish(2, b"one", b"two")
    place.run(DELETE_EARLIER, place.root)
    left = {path.read_bytes() for path in place.root.rglob("*") if path.is_file()}
    assert {b"one", b"two"} <= left
    assert b"somebody's" not in left
    assert place.get(second) == b"one two"
    with pytest.raises(subprocess.CalledProcessError):
        place.get(first)
    assert place.get(place.publish(3, b"one", b"two", b"three")) == b"one two three"


def test_without_the_command_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = shutil.which("git")
    assert git is not None
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(EverloopError, match="apt-get install git-lfs") as caught:
        LfsRepository(tmp_path / "parcels.git", 2**20)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "GIT_LFS_MISSING")


def test_a_pipeline_keeps_what_its_versions_are_kept_by(
    world: Any, make_record: Callable[..., bytes]
) -> None:
    lfs = world.pipeline.model_copy(update={"versioning": "git-lfs"})
    check_versioning({"parcels": lfs}, world.versions)
    world.send(0, make_record("a"))
    world.cut(world.pipeline, "r1", 10.0)
    check_versioning({"parcels": world.pipeline}, world.versions)
    with pytest.raises(EverloopError, match="versioning: git-lfs") as caught:
        check_versioning({"parcels": lfs}, world.versions)
    assert (caught.value.kind, caught.value.reason) == (Kind.PRECONDITION, "VERSIONING_CHANGED")


@with_lfs
def test_who_lost_its_turn_publishes_nothing(place: Place) -> None:
    place.publish(1, b"one")
    before = place.run("git show-ref", place.root)

    lost = lost_turn(place.root.with_name("parcels.git.lock"))
    with pytest.raises(EverloopError):
        place.repository.publish(version(2), [part_of(b"one")], {}, lost)
    assert place.run("git show-ref", place.root) == before
