"""Runs ingest, and kills it with -9 around one call: `dying_ingest.py module:Class.method before|after count`."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

from everloop_ingest.app import run_service


def arm(target: str, when: str, count: int) -> None:
    """Replaces the method by one that ends the process around its `count`-th call."""
    module, _, path = target.partition(":")
    class_name, _, method = path.partition(".")
    owner = getattr(importlib.import_module(module), class_name)
    real = getattr(owner, method)
    calls = 0

    def dies(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        fatal = calls == count
        if fatal and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **keywords)
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, method, dies)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        arm(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    sys.exit(run_service())
