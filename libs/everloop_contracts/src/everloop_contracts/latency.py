"""The latency histogram of `everloop.registry.v1.ArmStats`: its buckets, and what can be read from its counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["BUCKETS", "bucket_limit", "quantile", "slower_than"]

BUCKETS = 64
"""How many buckets a histogram has; counts that are not there are 0."""
_FIRST_SECONDS = 50e-6


def bucket_limit(bucket: int) -> float:
    """Seconds up to which a bucket counts; the last one also counts what is longer.

    >>> [bucket_limit(0), bucket_limit(4), round(bucket_limit(63), 3)]
    [5e-05, 0.0001, 2.755]
    """
    return _FIRST_SECONDS * math.exp2(bucket / 4)


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Seconds within which this share of the requests was answered; None where nothing was counted.

    Inside of a bucket the requests are taken to be spread evenly, which is at most 19 % off. What is longer than the
    last bucket's limit counts as that limit.

    >>> quantile([0, 0, 0, 0, 100], 0.5) == (bucket_limit(3) + bucket_limit(4)) / 2
    True
    >>> quantile([], 0.99) is None
    True
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below = share * total, 0
    for bucket, count in enumerate(counts):
        if count and below + count >= wanted:
            low = bucket_limit(bucket - 1) if bucket else 0.0
            return low + (bucket_limit(bucket) - low) * (wanted - below) / count
        below += count
    return bucket_limit(len(counts) - 1)


def slower_than(counts: Sequence[int], seconds: float) -> int:
    """How many requests took longer; those of the bucket that holds the limit count as quicker.

    >>> slower_than([5, 0, 2, 1], bucket_limit(1)), slower_than([5, 0, 2, 1], 1.0)
    (3, 0)
    """
    return sum(
        count
        for bucket, count in enumerate(counts)
        if bucket and bucket_limit(bucket - 1) >= seconds
    )
