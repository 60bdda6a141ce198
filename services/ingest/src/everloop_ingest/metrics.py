"""Every metric of ingest, declared once."""

from prometheus_client import Counter, Gauge, Histogram

__all__ = [
    "BUFFERED_BYTES",
    "CUT_PARTS",
    "CUT_SECONDS",
    "LAG",
    "LOST",
    "LOST_SHARDS",
    "ORPHANS",
    "PUSHED",
    "QUARANTINED",
    "RECLAIMED",
    "RECORDS",
    "SETTLE_SECONDS",
    "SHARD_BYTES",
    "SHARD_ROWS",
]

RECORDS = Counter(
    "everloop_ingest_records",
    "Messages that the dataset writer has settled; outcome is accepted, actual or rejected.",
    ["pipeline", "outcome"],
)
LAG = Gauge("everloop_ingest_lag", "Messages on the topic that are not settled yet.", ["pipeline"])
LOST = Counter(
    "everloop_ingest_lost",
    "Messages that the topic dropped before they were settled.",
    ["pipeline"],
)
LOST_SHARDS = Counter(
    "everloop_ingest_lost_shards",
    "Shards that the object store has lost; their rows are in no later version.",
    ["pipeline"],
)
BUFFERED_BYTES = Gauge(
    "everloop_ingest_buffered_bytes", "Bytes of messages read and not settled yet."
)
SHARD_ROWS = Histogram(
    "everloop_ingest_shard_rows",
    "Rows of a shard.",
    ["pipeline"],
    buckets=(1, 10, 100, 1_000, 5_000, 10_000, 25_000, 50_000, 100_000),
)
SHARD_BYTES = Histogram(
    "everloop_ingest_shard_bytes",
    "Size of a shard's object.",
    ["pipeline"],
    buckets=tuple(1024 * 4**power for power in range(9)),
)
SETTLE_SECONDS = Histogram(
    "everloop_ingest_settle_duration_seconds",
    "Time to validate, store and commit one batch.",
    ["pipeline"],
)
CUT_SECONDS = Histogram(
    "everloop_ingest_cut_duration_seconds",
    "Time to cut one dataset version, once the writer has caught up.",
    ["pipeline"],
    buckets=(0.5, 1, 2, 5, 10, 20, 60, 180, 600),
)
QUARANTINED = Counter(
    "everloop_ingest_quarantined_versions",
    "Dataset versions that failed their checks and were not announced.",
    ["pipeline"],
)
RECLAIMED = Counter(
    "everloop_ingest_reclaimed_objects",
    "Objects of the data bucket that were deleted since no later version needs them.",
    ["pipeline"],
)
ORPHANS = Counter(
    "everloop_ingest_orphaned_objects",
    "Objects of the data bucket that were deleted since no row of the database names them: a crash left them.",
    ["pipeline"],
)
CUT_PARTS = Histogram(
    "everloop_ingest_cut_parts",
    "Parts that a dataset version has and no version had before: what its cut wrote.",
    ["pipeline"],
    buckets=(0, 1, 2, 5, 10, 20, 50, 100, 500, 1_000),
)
PUSHED = Counter(
    "everloop_ingest_pushed_records",
    "Records that came in over gRPC; outcome is accepted or rejected.",
    ["pipeline", "outcome"],
)
