"""How much memory the stack and the demo take: proportional set sizes, so that shared pages count once."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from everloop.stack.processes import memory_by_part

__all__ = ["MemoryUse", "MemoryWatch"]

SECONDS = 5.0


@dataclass
class MemoryUse:
    """What was measured.

    Attributes:
        peak_bytes: Most that all processes together took.
        at_peak: Bytes of each part at that moment; `demo` is the demo's own process.
        samples: Seconds since the start, and bytes.
    """

    peak_bytes: int = 0
    at_peak: dict[str, int] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)


class MemoryWatch:
    """Samples on a thread of its own."""

    def __init__(self, home: Path) -> None:
        """Takes the home of the stack."""
        self._home = home
        self._began = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.use = MemoryUse()

    def start(self) -> None:
        """Begins."""
        self._thread.start()

    def stop(self) -> None:
        """Ends."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def sample(self) -> None:
        """Measures once."""
        parts = memory_by_part(self._home)
        own = psutil.Process(os.getpid()).memory_full_info()
        parts["demo"] = int(getattr(own, "pss", own.uss))
        total = sum(parts.values())
        self.use.samples.append((time.monotonic() - self._began, total))
        if total > self.use.peak_bytes:
            self.use.peak_bytes, self.use.at_peak = total, parts

    def _run(self) -> None:
        while not self._stop.wait(SECONDS):
            self.sample()
