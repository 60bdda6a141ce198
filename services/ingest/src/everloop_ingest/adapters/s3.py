"""The data bucket, through Arrow's filesystems."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

from pyarrow import fs

from everloop_ingest.domain import ShardsLost
from everloop_runtime.errors import EverloopError, Kind

__all__ = ["ShardBucket"]

_TRANSFERS = 8
"""Objects that are copied at once."""


class ShardBucket:
    """Objects of one bucket."""

    def __init__(self, filesystem: fs.FileSystem, bucket: str) -> None:
        """Takes an Arrow filesystem and the bucket, which for a local one is a folder."""
        self._store, self._bucket = filesystem, bucket
        self._files = fs.SubTreeFileSystem(bucket, filesystem)

    def put(self, key: str, content: bytes) -> None:
        """See `ports.ShardFiles`; an object appears when its stream is closed."""
        try:
            with self._files.open_output_stream(key) as stream:
                stream.write(content)
        except OSError as error:
            raise _unavailable(f"cannot store {key}", error) from error

    def fetch(self, keys: Sequence[str], folder: Path) -> list[Path]:
        """See `ports.ShardFiles`."""
        paths = [folder / f"{index:08d}.parquet" for index in range(len(keys))]
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            found = list(pool.map(self._fetch, keys, paths))
        lost = [key for key, there in zip(keys, found, strict=True) if not there]
        if lost:
            self._look_for_bucket()
            raise ShardsLost(lost)
        return paths

    def delete(self, keys: Sequence[str]) -> None:
        """See `ports.ShardFiles`."""
        with ThreadPoolExecutor(_TRANSFERS) as pool:
            list(pool.map(self._delete, keys))

    def stored_before(self, folder: str, time: datetime) -> list[str]:
        """See `ports.ShardFiles`."""
        selector = fs.FileSelector(folder, allow_not_found=True, recursive=True)
        try:
            found = self._files.get_file_info(selector)
        except OSError as error:
            raise _unavailable(f"cannot list {folder}", error) from error
        return [info.path for info in found if info.type is fs.FileType.File and info.mtime < time]

    def _delete(self, key: str) -> None:
        try:
            self._files.delete_file(key)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unavailable(f"cannot delete {key}", error) from error

    def _fetch(self, key: str, path: Path) -> bool:
        """Copies one object; False if it is not there."""
        try:
            fs.copy_files(
                key,
                str(path),
                source_filesystem=self._files,
                destination_filesystem=fs.LocalFileSystem(),
            )
            return True
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unavailable(f"cannot read {key}", error) from error

    def _look_for_bucket(self) -> None:
        """Objects are also not found where the whole bucket is missing: that loses none of them."""
        try:
            info = self._store.get_file_info(self._bucket)
        except OSError as error:
            raise _unavailable(f"cannot look for {self._bucket}", error) from error
        if info.type is fs.FileType.NotFound:
            raise _unavailable(f"there is no bucket {self._bucket}", info)


def _unavailable(what: str, error: object) -> EverloopError:
    return EverloopError(Kind.UNAVAILABLE, "OBJECT_STORE_UNAVAILABLE", f"{what}: {error}")
