"""A file of callers, and what those hear who are not let in; for the tests of every service that asks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from everloop_contracts.grpc_client import error_info

__all__ = ["entry", "refusal"]


def entry(name: str, token: str, *services: str) -> str:
    """The lines of a caller."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    return f"  - {{name: {name}, services: [{', '.join(services)}], sha256: {digest}}}\n"


def refusal(ask: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """Status and reason of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        ask()
    refused: Any = caught.value
    return refused.code(), error_info(refused)[0]
