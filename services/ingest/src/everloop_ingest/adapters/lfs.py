"""A data repository without an object store: git for the history, Git LFS beside it for the content."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from everloop_ingest.adapters.git import Git, GitError
from everloop_ingest.domain import ObjectFile, Part, Version, part_name
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["LfsRepository"]

_FOLDER = "rows"
_LISTING = "rows.md5"
"""What `md5sum --check` takes."""
_ATTRIBUTES = f"{_FOLDER}/*.parquet filter=lfs diff=lfs merge=lfs -text\n"


class LfsRepository:
    """One pipeline's bare repository, to clone from, with one writer at a time.

    The files of `rows` are tagged `P/v<N>`. Their content is in `lfs/objects`, once for all versions that share it,
    where Git LFS looks for it when somebody clones from this folder.
    """

    versioning = "git-lfs"

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Makes or opens the repository in a folder; `max_bytes` bounds the content of all its versions.

        Raises:
            EverloopError: kind precondition, reason GIT_LFS_MISSING.
        """
        self._root = root.resolve()
        self._max_bytes = max_bytes
        self._git = Git(self._root)
        self._root.mkdir(parents=True, exist_ok=True)
        if not self._git.has_lfs():
            raise EverloopError(
                Kind.PRECONDITION,
                "GIT_LFS_MISSING",
                f"{root.stem}: versioning: git-lfs needs the command git-lfs: apt-get install git-lfs, or see "
                "https://git-lfs.com",
            )
        with self._git.writing():
            self._git.init(bare=True)

    @property
    def url(self) -> str:
        """Where it can be cloned from."""
        return str(self._root)

    def uri(self, part: Part) -> str:
        """See `ports.DataRepository`."""
        return self._object(part).as_uri()

    def publish(
        self,
        version: Version,
        parts: Sequence[Part],
        new: Mapping[str, Path],
        check: Callable[[], None],
    ) -> ObjectFile:
        """See `ports.DataRepository`.

        Raises:
            EverloopError: kind exhausted, reason LFS_LIMIT_REACHED: nothing was stored.
        """
        tag = f"{version.pipeline}/v{version.number}"
        names = [f"{_FOLDER}/{part_name(number)}" for number in range(len(parts))]
        listing = "".join(f"{part.md5}  {name}\n" for part, name in zip(parts, names, strict=True))
        pointers = dict(zip(names, map(_pointer, parts), strict=True))
        with self._git.writing():
            check()
            try:
                self._keep(tag, [part for part in parts if part.md5 in new], new)
                commit = self._tagged(tag, version, listing, pointers)
            except (GitError, OSError) as error:
                raise _unavailable(f"cannot store {tag}", error) from error
        md5 = hashlib.md5(listing.encode(), usedforsecurity=False).hexdigest()
        size = sum(part.size_bytes for part in parts)
        return ObjectFile(_FOLDER, self._root.as_uri(), f"{md5}.dir", size, tag, commit)

    def fetch(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        """See `ports.DataRepository`."""
        paths = [folder / f"{index:08d}.parquet" for index in range(len(parts))]
        for part, path in zip(parts, paths, strict=True):
            try:
                shutil.copyfile(self._object(part), path)
            except FileNotFoundError as error:
                raise EverloopError(
                    Kind.UNAVAILABLE,
                    "PART_LOST",
                    f"{self.uri(part)} is gone, and with it {part.rows} rows",
                ) from error
            except OSError as error:
                raise _unavailable(f"cannot read {self.uri(part)}", error) from error
        return paths

    def _tagged(self, tag: str, version: Version, listing: str, pointers: Mapping[str, str]) -> str:
        """Commits and tags what an earlier attempt has not; returns the commit."""
        commit = self._git.tagged(tag)
        if commit is not None and self._holds(commit, listing):
            return commit
        if not self._holds("main", listing):
            self._git.commit_tree(
                f"Cut {tag}\n\nCause: {version.cause_id}\n",
                {".gitattributes": _ATTRIBUTES, _LISTING: listing, **pointers},
                version.create_time,
            )
        self._git.tag(tag, "main")
        commit = self._git.tagged(tag)
        assert commit is not None
        return commit

    def _keep(self, tag: str, parts: Sequence[Part], files: Mapping[str, Path]) -> None:
        """Stores the content of parts."""
        missing = [part for part in parts if not self._object(part).exists()]
        kept = (self._root / "lfs" / "objects").rglob("*")
        held = sum(path.stat().st_size for path in kept if path.is_file())
        wanted = sum(part.size_bytes for part in missing)
        if held + wanted > self._max_bytes:
            raise EverloopError(
                Kind.EXHAUSTED,
                "LFS_LIMIT_REACHED",
                f"{self._root} holds {held} bytes, {tag} adds {wanted}, and {self._max_bytes} is the most "
                "(EVERLOOP_LFS_MAX_BYTES): raise it, or delete what only earlier versions hold",
            )
        for part in missing:
            pointer = self._git.keep_by_lfs(files[part.md5])
            if pointer != _pointer(part).strip():
                raise RuntimeError(f"git lfs keeps a part of {tag} as {pointer!r}")

    def _object(self, part: Part) -> Path:
        digest = part.sha256
        return self._root / "lfs" / "objects" / digest[:2] / digest[2:4] / digest

    def _holds(self, commit: str, listing: str) -> bool:
        return self._git.show(commit, _LISTING) == listing.strip()


def _unavailable(what: str, error: Exception) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "DATA_REPOSITORY_UNAVAILABLE", f"{what}: {error}")


def _pointer(part: Part) -> str:
    """What git holds in the place of the content."""
    return (
        "version https://git-lfs.github.com/spec/v1\n"
        f"oid sha256:{part.sha256}\nsize {part.size_bytes}\n"
    )
