"""The object store, through Arrow's filesystems; for services that depend on pyarrow."""

from __future__ import annotations

from urllib.parse import urlsplit

from pyarrow import fs

__all__ = ["s3_filesystem"]


def s3_filesystem(endpoint: str, access_key: str, secret_key: str, region: str) -> fs.FileSystem:
    """An S3 endpoint; without an access key the ambient credentials (IRSA, instance profile)."""
    address = urlsplit(endpoint)
    return fs.S3FileSystem(
        access_key=access_key or None,
        secret_key=secret_key or None,
        region=region,
        endpoint_override=address.netloc or None,
        scheme=address.scheme or "https",
        connect_timeout=3,
        request_timeout=20,
        # One request where the content is small, instead of a multipart upload of one part.
        allow_delayed_open=True,
    )
