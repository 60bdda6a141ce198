"""Which parts may hold a record id: 64 bits of hash per record, sorted, one file per part on this disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from everloop_ingest.domain import Part
from everloop_ingest.parts import HASH

__all__ = ["RecordIndex"]

Hashes = npt.NDArray[np.uint64]


class RecordIndex:
    """The index of one pipeline's newest version; not for several threads at once.

    A cache: a file that is missing is made from the part's state. Two ids may share a hash, so that a part that is
    named here need not hold the id; one that is not named does not.
    """

    def __init__(self, folder: Path, fetch: Callable[[Sequence[Part]], list[Path]]) -> None:
        """Takes the folder of the files, and what copies the states of parts to this disk."""
        self._folder = folder
        self._fetch = fetch

    def holding(self, parts: Sequence[Part], hashes: Hashes) -> list[int]:
        """Positions of the parts that may hold one of the ids with these hashes."""
        self._complete(parts)
        wanted = np.unique(hashes)
        return [
            position
            for position, part in enumerate(parts)
            if _meet(np.load(self._file(part), mmap_mode="r"), wanted)
        ]

    def take(self, part: Part, state: Path) -> None:
        """Adds a part whose state is on this disk."""
        hashes = pq.read_table(state, columns=[HASH]).column(HASH).to_numpy()
        self._folder.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole: a crash must not leave half of it.
        unfinished = self._folder / "unfinished.npy"
        np.save(unfinished, np.sort(hashes))
        unfinished.rename(self._file(part))

    def keep(self, parts: Sequence[Part]) -> None:
        """Drops the files of all other parts."""
        kept = {self._file(part) for part in parts}
        for file in self._folder.glob("*.npy"):
            if file not in kept:
                file.unlink()

    def _complete(self, parts: Sequence[Part]) -> None:
        missing = [part for part in parts if not self._file(part).exists()]
        for part, state in zip(missing, self._fetch(missing), strict=True):
            self.take(part, state)

    def _file(self, part: Part) -> Path:
        return self._folder / f"{Path(part.state).stem}.npy"


def _meet(held: Hashes, wanted: Hashes) -> bool:
    """Whether two sorted arrays share a value; looks up the shorter one in the longer."""
    few, many = sorted((held, wanted), key=len)
    if not len(few):
        return False
    found = np.searchsorted(many, few)
    return bool(np.any(many[np.minimum(found, len(many) - 1)] == few))
