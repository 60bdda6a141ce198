"""The data repository: git for the history, DVC for the content, which lies on its remote."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from botocore.exceptions import BotoCoreError, ClientError
from dvc.exceptions import UploadError
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from dvc_data.hashfile.meta import Meta
from dvc_data.hashfile.tree import Tree
from pyarrow import fs

from everloop_ingest.adapters.git import Git, GitError
from everloop_ingest.domain import ObjectFile, Part, Version, part_name
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["DvcRepository"]

_REMOTE = "storage"
_FOLDER = "rows"
_EARLIER = "rows.parquet.dvc"
"""What versions tracked before there were parts."""
_TRANSFERS = 8
"""Objects that are copied at once."""

logging.getLogger("dvc").setLevel(logging.WARNING)  # else it draws progress bars


class DvcRepository:
    """One repository for all pipelines, with one writer at a time.

    The directory `P/rows` is tracked by DVC and tagged `P/v<N>`. The content is only on the remote: what is pushed
    leaves this disk, so that the repository stays small however many versions there are.
    """

    versioning = "dvc"

    def __init__(
        self,
        root: Path,
        remote: str,
        options: Mapping[str, str],
        secrets: Mapping[str, str],
        filesystem: fs.FileSystem,
    ) -> None:
        """Makes or opens the repository.

        Args:
            root: its folder.
            remote: address of the DVC remote, `s3://bucket/prefix` or a folder.
            options: of the remote, committed (`endpointurl`, …).
            secrets: of the remote, kept out of git.
            filesystem: the same object store, to check that what was pushed is there.
        """
        self._root = root.resolve()
        self._remote = remote
        self._files = filesystem
        self._git = Git(self._root)
        self._root.mkdir(parents=True, exist_ok=True)
        with self._git.writing():
            self._git.init()
            self._configure(options, secrets)

    @property
    def url(self) -> str:
        """Where it can be cloned from."""
        return str(self._root)

    def uri(self, part: Part) -> str:
        """See `ports.DataRepository`."""
        return self._uri(part.md5)

    def _uri(self, md5: str) -> str:
        return f"{self._remote}/files/md5/{md5[:2]}/{md5[2:]}"

    def publish(
        self,
        version: Version,
        parts: Sequence[Part],
        new: Mapping[str, Path],
        check: Callable[[], None],
    ) -> ObjectFile:
        """See `ports.DataRepository`.

        DVC knows directories by their listing alone: the content of parts that are on the remote already is not
        needed here.
        """
        path = f"{version.pipeline}/{_FOLDER}"
        tag = f"{version.pipeline}/v{version.number}"
        size = sum(part.size_bytes for part in parts)
        with self._git.writing():
            check()
            repo = Repo(str(self._root))
            try:
                tree = _listing(parts)
                cache = repo.cache.local
                for md5, file in new.items():
                    cache.add(str(file), repo.fs, md5, hardlink=True)
                cache.add(tree.path, tree.fs, tree.oid)
                commit = self._tagged_with(tag, path, tree.oid)
                if commit is None:
                    self._point_to(version.pipeline, tree.oid, size, len(parts))
                    commit = self._tag(version, tag)
                repo.push(targets=[str(self._root / f"{path}.dvc")], remote=_REMOTE)
            except (UploadError, BotoCoreError, ClientError, GitError, OSError) as error:
                raise _unavailable(f"cannot push {tag}", error) from error
            finally:
                repo.close()
            self._check(tree.oid, list(new))
            shutil.rmtree(self._root / ".dvc" / "cache", ignore_errors=True)
            return ObjectFile(path, self._uri(tree.oid), tree.oid, size, tag, commit)

    def fetch(self, parts: Sequence[Part], folder: Path) -> list[Path]:
        """See `ports.DataRepository`."""
        paths = [folder / f"{index:08d}.parquet" for index in range(len(parts))]
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(self._fetch, parts, paths))
        return paths

    def _fetch(self, part: Part, path: Path) -> None:
        uri = self.uri(part)
        try:
            fs.copy_files(
                uri.removeprefix("s3://"),
                str(path),
                source_filesystem=self._files,
                destination_filesystem=fs.LocalFileSystem(),
            )
        except FileNotFoundError as error:
            raise EverloopError(
                Kind.UNAVAILABLE, "PART_LOST", f"{uri} is gone, and with it {part.rows} rows"
            ) from error
        except OSError as error:
            raise _unavailable(f"cannot read {uri}", error) from error

    def _tagged_with(self, tag: str, path: str, md5: str) -> str | None:
        """The commit of a tag that an earlier attempt has set, if it holds the same content."""
        commit = self._git.tagged(tag)
        pointer = self._git.show(commit, f"{path}.dvc") if commit else None
        return commit if pointer and yaml.safe_load(pointer)["outs"][0]["md5"] == md5 else None

    def _point_to(self, pipeline: str, md5: str, size: int, files: int) -> None:
        """Writes what DVC would write if it had the whole directory here."""
        folder = self._root / pipeline
        folder.mkdir(exist_ok=True)
        out = {"md5": md5, "size": size, "nfiles": files, "hash": "md5", "path": _FOLDER}
        (folder / f"{_FOLDER}.dvc").write_text(yaml.safe_dump({"outs": [out]}, sort_keys=False))
        (folder / ".gitignore").write_text(f"/{_FOLDER}\n")
        (folder / _EARLIER).unlink(missing_ok=True)

    def _tag(self, version: Version, tag: str) -> str:
        folder = version.pipeline
        files = [f"{folder}/{_FOLDER}.dvc", f"{folder}/.gitignore"]
        if self._git.tracks(f"{folder}/{_EARLIER}"):
            files.append(f"{folder}/{_EARLIER}")
        commit = self._git.commit(
            f"Cut {tag}\n\nCause: {version.cause_id}", files, version.create_time
        )
        self._git.tag(tag, commit)
        return commit

    def _check(self, listing: str, files: Sequence[str]) -> None:
        """Looks whether what was pushed is there."""
        uris = [self._uri(md5) for md5 in (listing, *files)]
        try:
            found = self._files.get_file_info([uri.removeprefix("s3://") for uri in uris])
        except OSError as error:
            raise _unavailable("cannot look for what was pushed", error) from error
        for uri, info in zip(uris, found, strict=True):
            if info.type is not fs.FileType.File:
                # DVC remembers what it has pushed, and takes a listing that is there for all of its files. Without both
                # the next attempt pushes again.
                with suppress(OSError):
                    self._files.delete_file(uris[0].removeprefix("s3://"))
                shutil.rmtree(self._root / ".dvc" / "tmp", ignore_errors=True)
                shutil.rmtree(self._site_cache, ignore_errors=True)
                raise _unavailable(f"{uri} is not there after the push", info)

    @property
    def _site_cache(self) -> Path:
        return self._root.with_name(f"{self._root.name}-dvc")

    def _configure(self, options: Mapping[str, str], secrets: Mapping[str, str]) -> None:
        if not (self._root / ".dvc").is_dir() or not (self._root / ".dvc" / "config").exists():
            Repo.init(str(self._root), force=True).close()
        # Left by a killed writer; nobody else writes while we hold the lock.
        (self._root / ".dvc" / "tmp" / "rwlock").unlink(missing_ok=True)
        repo = Repo(str(self._root))
        try:
            with repo.config.edit("repo") as config:
                config["core"] |= {"analytics": False, "check_update": False, "remote": _REMOTE}
                config["remote"][_REMOTE] = {"url": self._remote, **options}
            local = self._root / ".dvc" / "config.local"
            local.touch(mode=0o600)
            with repo.config.edit("local") as config:
                config["core"]["site_cache_dir"] = str(self._site_cache)
                config["remote"][_REMOTE] = dict(secrets)
        finally:
            repo.close()
        self._git.commit(
            "Configure the repository", [".dvc/config", ".dvc/.gitignore", ".dvcignore"]
        )


def _listing(parts: Sequence[Part]) -> Tree:
    """A directory as DVC lists it. Files are numbered, so that the order of their names is that of the rows."""
    tree = Tree()  # type: ignore[no-untyped-call]
    for number, part in enumerate(parts):
        name = part_name(number)
        tree.add((name,), Meta(size=part.size_bytes), HashInfo("md5", part.md5))
    tree.digest()
    return tree


def _unavailable(what: str, error: Any) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "DATA_REPOSITORY_UNAVAILABLE", f"{what}: {error}")
