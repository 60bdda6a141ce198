"""The hash chain of the audit trail: what was written once cannot be changed unnoticed.

Each entry has a link: the SHA-256 of the link before it and of all that the entry says. Who changes, removes, adds or
swaps entries breaks a link, unless all later ones are made anew as well; that is found by whoever has kept a link from
before, and `everloop audit verify --head` takes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["FIELDS", "GENESIS", "link"]

GENESIS = "0" * 64
"""What stands before the first entry."""
FIELDS = ("id", "model", "version", "action", "actor", "reason", "cause_id", "time", "evidence")
"""What an entry says, in the order in which it is hashed. It never changes: every entry of the past depends on it."""


def link(previous: str, row: Mapping[str, Any]) -> str:
    """The link of an entry: SHA-256, hexadecimal, of a JSON array with the link before it and the stored fields.

    Args:
        previous: link of the entry before it, or `GENESIS`.
        row: the entry as the database holds it.
    """
    content = json.dumps([previous, *(row[name] for name in FIELDS)], separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()
