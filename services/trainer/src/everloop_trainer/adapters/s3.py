"""Dataset versions on the object store, or on this disk where Git LFS keeps them."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.s3 import s3_filesystem
from everloop_runtime.settings import ServiceSettings
from everloop_trainer.domain import DataFile, Dataset, TrainingError

__all__ = ["S3Datasets", "read_file"]


class S3Datasets:
    """Implements `Datasets`."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Takes the address and keys of the object store; connects at the first use."""
        self._settings = settings

    def fetch(self, dataset: Dataset) -> pa.Table:
        """All rows of a version."""
        settings = self._settings
        store = s3_filesystem(
            settings.s3_endpoint,
            settings.s3_access_key,
            settings.s3_secret_key.get_secret_value(),
            settings.s3_region,
        )
        return pa.concat_tables([read_file(store, file) for file in dataset.files])


def read_file(store: fs.FileSystem, file: DataFile) -> pa.Table:
    """Reads one Parquet file, of the store or, by `file://`, of this disk, after its content has been checked.

    Raises:
        TrainingError: its content is not the one tracked, and reading it again would give the same.
        EverloopError: kind not_found: it is not there; kind unavailable: it cannot be read now.
    """
    path = file.uri.removeprefix("s3://")
    if path.startswith("file://"):
        store, path = fs.FileSystem.from_uri(path)
    try:
        with store.open_input_stream(path) as stream:
            content = stream.read()
    except FileNotFoundError as error:
        raise EverloopError(Kind.NOT_FOUND, "DATASET_GONE", f"{file.uri} is not there") from error
    except OSError as error:
        raise EverloopError(
            Kind.UNAVAILABLE, "DATASET_UNREADABLE", f"{file.uri} cannot be read: {error}"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != file.md5:
        raise TrainingError(
            f"{file.uri} is corrupt: it has MD5 {digest}, the version says {file.md5}"
        )
    return pq.read_table(pa.BufferReader(content))
