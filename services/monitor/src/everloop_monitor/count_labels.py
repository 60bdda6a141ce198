"""How many rows of a chunk have a label, and how many ever can."""

from __future__ import annotations

from everloop_monitor.adapters.store import chunks, labels, predictions
from everloop_monitor.batches import read_record_ids
from everloop_monitor.domain import Chunk
from everloop_runtime.database import Database

__all__ = ["LabelCounts"]


class LabelCounts:
    """Counts again and again, and looks up only what had no label the last time."""

    def __init__(self, database: Database) -> None:
        """Takes the monitor's database."""
        self._database = database
        # Record ids without a label, by the chunk's position; at most the chunks that wait.
        self._unlabelled: dict[int, list[str]] = {}

    def __len__(self) -> int:
        """Chunks that are remembered."""
        return len(self._unlabelled)

    def count(self, chunk: Chunk) -> tuple[int, int]:
        """Rows of a chunk that have a label, and rows that have a record id to get one by."""
        missing = self._unlabelled.get(chunk.position)
        with self._database.read() as connection:
            if missing is None:
                batches = predictions.of_chunk(connection, chunk)
                missing = read_record_ids(batches, chunk.first_row, chunk.rows)
                # Chunks are also closed elsewhere, when they have waited too long or lost rows.
                waiting = chunks.waiting_positions(connection)
                self._unlabelled = {p: ids for p, ids in self._unlabelled.items() if p in waiting}
            known = labels.known(connection, chunk.pipeline, missing)
        missing = [record for record in missing if record not in known]
        self._unlabelled[chunk.position] = missing
        return chunk.rows - len(missing), chunk.rows - missing.count("")

    def forget(self, chunk: Chunk) -> None:
        """Forgets a chunk that no longer waits."""
        self._unlabelled.pop(chunk.position, None)
