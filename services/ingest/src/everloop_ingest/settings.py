"""Settings of ingest: the only reader of its environment."""

from __future__ import annotations

import socket

from pydantic import Field

from everloop_contracts.services import Service
from everloop_runtime.settings import ServiceSettings

__all__ = ["IngestSettings"]

_MIB = 1024 * 1024


class IngestSettings(ServiceSettings):
    """Read from `EVERLOOP_*`, immutable."""

    service = Service.INGEST

    data_bucket: str = "everloop-data"
    """Bucket of the shards."""
    dvc_bucket: str = "everloop-dvc"
    """Bucket of the DVC remote, below the prefix `dvc`."""
    lfs_max_bytes: int = Field(default=1024 * _MIB, ge=_MIB)
    """Bytes of all versions of a pipeline with `versioning: git-lfs`, on this disk, beyond which none is cut."""

    instance: str = Field(default_factory=socket.gethostname, min_length=1)
    """Name of this process among those that share the work, the same after a restart; also of its folder for work."""

    max_record_bytes: int = Field(default=256 * 1024, ge=256, le=900 * 1024)
    """Largest record, in bytes; a dead letter of it must fit a Kafka message."""
    shard_rows: int = Field(default=25_000, ge=1)
    """Messages at which a shard is closed."""
    shard_bytes: int = Field(default=16 * _MIB, ge=1024)
    """Bytes of messages at which a shard is closed."""
    shard_age_seconds: float = Field(default=5.0, gt=0)
    """Age at which a shard is closed, in seconds: how late labels and rows may be visible."""
    batch_bytes: int = Field(default=64 * _MIB, ge=1024)
    """Bytes of messages that are validated and stored at once, where more wait than a shard takes; the columns of
    `settle_workers` such batches come on top of `buffer_bytes`."""
    buffer_rows: int = Field(default=200_000, ge=1)
    """Messages in memory at which the writer stops reading."""
    buffer_bytes: int = Field(default=192 * _MIB, ge=1024)
    """Bytes in memory at which the writer stops reading."""
    settle_workers: int = Field(default=2, ge=1)
    """Batches that are settled at once, each of another partition."""
    outbox_limit: int = Field(default=50_000, ge=1)
    """Messages waiting in the outbox at which no batch is settled."""

    grpc_workers: int = Field(default=16, ge=1)
    """Threads that answer gRPC calls at once; streams take at most half of them, CutVersion a quarter."""
    push_max_bytes: int = Field(default=64 * _MIB, ge=1024)
    """Bytes on their way to the broker, of all callers, beyond which PushRecords is refused and streams are held up;
    half a KiB counts for each record besides its body."""
    stream_max_bytes: int = Field(default=8 * _MIB, ge=1024)
    """Bytes of one stream's messages that are not answered yet (512 for each record and message besides its own),
    beyond which the stream is not read."""
    stream_idle_seconds: float = Field(default=300.0, gt=0)
    """Time after which a stream on which nothing comes is ended, in seconds."""
    push_timeout_seconds: float = Field(default=10.0, gt=0)
    """How long the broker may take to acknowledge pushed records, in seconds."""
    call_deadline_seconds: float = Field(default=120.0, gt=0)
    """Deadline of calls that bring none, and the longest that is kept, in seconds."""

    request_retention_days: float = Field(default=30.0, gt=0)
    """How long a request_id is remembered, in days; a repeat that comes later is a new request."""
    dead_letter_retention_days: float = Field(default=30.0, gt=0)
    """How long dead letters are kept on the object store, to look at and to replay, in days; on their topic Kafka's own
    retention holds."""
    cut_lease_seconds: float = Field(default=30.0, ge=1)
    """How long the others wait for a process that was killed while it cut a version, in seconds."""
    schedule_seconds: float = Field(default=5.0, gt=0)
    """Time between two looks whether a version is due, in seconds."""
    compact_shards: int = Field(default=64, ge=2, le=1_000)
    """Small shards that are put together into one object at once; a shard is small up to `shard_rows` by this many."""
    shard_retention_days: float = Field(default=7.0, ge=0)
    """How long a shard is kept whose rows are in a version, in days; so is what orders the rows of replaced parts."""
    orphan_grace_hours: float = Field(default=24.0, gt=0)
    """Age at which an object that no row names, left by a crash, is deleted, in hours; they are looked for as often. No
    upload may take that long until its row is there."""
    reclaim_objects: int = Field(default=1_000, ge=1)
    """Objects of each kind that one look of the scheduler deletes at most."""
    compact_parts: int = Field(default=4, ge=0)
    """Pairs of small parts that one cut puts together at most, besides the parts that it writes anyway."""
    part_rows: int = Field(default=65_536, ge=1_000)
    """Most rows of a part: one Parquet file of a dataset version, and what a late label makes a cut write anew; a
    version has at most some 6,000 of them."""
    cut_memory_bytes: int = Field(default=512 * _MIB, ge=64 * _MIB)
    """Memory for merging one version's new rows, in bytes; beyond it goes to disk. At once: one version per pipeline,
    and no more than a quarter of the gRPC workers and the scheduler cut."""
    cut_threads: int = Field(default=2, ge=1)
    """Threads that merge one version's new rows."""
