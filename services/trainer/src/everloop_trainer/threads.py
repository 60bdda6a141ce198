"""How many threads a fit may use."""

from __future__ import annotations

import os

__all__ = ["threads"]


def threads() -> int:
    """Half of the machine's cores, at least one.

    Serving and the broker share the machine, and OpenMP's threads wait busily for each other: where cores are
    contended, two threads are slower than one.
    """
    return max(1, (os.cpu_count() or 2) // 2)
