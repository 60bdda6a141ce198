"""The data repository: git for the history, DVC for the content, which lies on its remote."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

import yaml
from botocore.exceptions import BotoCoreError, ClientError
from dvc.exceptions import UploadError
from dvc.repo import Repo
from pyarrow import fs

from everloop_ingest.adapters.git import Git
from everloop_ingest.domain import ObjectFile, Version
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["DvcRepository"]

_REMOTE = "storage"
_FILE = "rows.parquet"

logging.getLogger("dvc").setLevel(logging.WARNING)  # else it draws progress bars


class DvcRepository:
    """One repository for all pipelines, with one writer at a time.

    `P/rows.parquet` is tracked by DVC and tagged `P/v<N>`. The content is only on the remote: what is pushed leaves
    this disk, so that the repository stays small however many versions there are.
    """

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
        self._thread_lock = threading.Lock()
        self._git = Git(self._root)
        self._root.mkdir(parents=True, exist_ok=True)
        with self._writing():
            self._git.init()
            self._configure(options, secrets)

    @property
    def url(self) -> str:
        """Where it can be cloned from."""
        return str(self._root)

    def publish(self, version: Version, rows: Path) -> ObjectFile:
        """See `ports.DataRepository`."""
        path = f"{version.pipeline}/{_FILE}"
        tag = f"{version.pipeline}/v{version.number}"
        with self._writing():
            target = self._root / path
            target.parent.mkdir(exist_ok=True)
            shutil.move(rows, target)
            repo = Repo(str(self._root))
            try:
                repo.add(str(target))
                pointer = (self._root / f"{path}.dvc").read_text()
                out = yaml.safe_load(pointer)["outs"][0]
                commit = self._tagged_with(tag, path, out["md5"]) or self._tag(version, tag, path)
                repo.push(targets=[f"{target}.dvc"], remote=_REMOTE)
            except (UploadError, BotoCoreError, ClientError, OSError) as error:
                raise _unavailable(f"cannot push {tag}", error) from error
            finally:
                repo.close()
            uri = f"{self._remote}/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
            self._check(uri, out["size"])
            self._drop_local(target)
            return ObjectFile(path, uri, out["md5"], out["size"], tag, commit)

    def _tagged_with(self, tag: str, path: str, md5: str) -> str | None:
        """The commit of a tag that an earlier attempt has set, if it holds the same content."""
        commit = self._git.tagged(tag)
        pointer = self._git.show(commit, f"{path}.dvc") if commit else None
        return commit if pointer and yaml.safe_load(pointer)["outs"][0]["md5"] == md5 else None

    def _tag(self, version: Version, tag: str, path: str) -> str:
        files = [f"{path}.dvc", f"{version.pipeline}/.gitignore"]
        commit = self._git.commit(
            f"Cut {tag}\n\nCause: {version.cause_id}", files, version.create_time
        )
        self._git.tag(tag, commit)
        return commit

    def _check(self, uri: str, size: int) -> None:
        try:
            info = self._files.get_file_info(uri.removeprefix("s3://"))
        except OSError as error:
            raise _unavailable(f"cannot look for {uri}", error) from error
        if info.size != size:
            # DVC remembers what it has pushed; without its memory the next attempt pushes again.
            shutil.rmtree(self._root / ".dvc" / "tmp", ignore_errors=True)
            shutil.rmtree(self._site_cache, ignore_errors=True)
            raise _unavailable(f"{uri} is not there after the push", info)

    def _drop_local(self, target: Path) -> None:
        target.unlink()
        shutil.rmtree(self._root / ".dvc" / "cache", ignore_errors=True)

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

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One writer at a time, in this process and any other."""
        with self._thread_lock, self._root.with_name(f"{self._root.name}.lock").open("w") as lock:
            flock(lock, LOCK_EX)
            try:
                yield
            finally:
                flock(lock, LOCK_UN)


def _unavailable(what: str, error: Any) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "DATA_REPOSITORY_UNAVAILABLE", f"{what}: {error}")
