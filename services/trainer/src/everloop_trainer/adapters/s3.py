"""Dataset versions on the object store."""

from __future__ import annotations

import hashlib
import logging
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from everloop_runtime.errors import EverloopError, Kind
from everloop_runtime.settings import ServiceSettings
from everloop_trainer.domain import DataFile, Dataset

__all__ = ["S3Datasets", "read_file"]

log = logging.getLogger(__name__)


class S3Datasets:
    """Implements `Datasets`."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Takes the address and keys of the object store; connects at the first use."""
        self._settings = settings

    def fetch(self, dataset: Dataset) -> pa.Table:
        """All rows of a version.

        Raises:
            EverloopError: kind unavailable: a file cannot be read now, or its content is not the one tracked.
        """
        store = self._open()
        return pa.concat_tables([read_file(store, file) for file in dataset.files])

    def _open(self) -> fs.S3FileSystem:
        settings = self._settings
        endpoint = urlparse(settings.s3_endpoint)
        return fs.S3FileSystem(
            access_key=settings.s3_access_key or None,
            secret_key=settings.s3_secret_key.get_secret_value() or None,
            region=settings.s3_region,
            scheme=endpoint.scheme or None,
            endpoint_override=endpoint.netloc or None,
        )


def read_file(store: fs.FileSystem, file: DataFile) -> pa.Table:
    """Reads one Parquet file after its content has been checked."""
    try:
        with store.open_input_stream(file.uri.removeprefix("s3://")) as stream:
            content = stream.read()
    except OSError as error:
        raise EverloopError(
            Kind.UNAVAILABLE, "DATASET_UNREADABLE", f"{file.uri} cannot be read: {error}"
        ) from error
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != file.md5:
        raise EverloopError(
            Kind.UNAVAILABLE,
            "DATASET_CORRUPT",
            f"{file.uri} has MD5 {digest}, the version says {file.md5}",
        )
    return pq.read_table(pa.BufferReader(content))
