"""How predictions are counted into chunks, whatever batches they come in."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Stream", "cut"]


@dataclass(frozen=True, slots=True)
class Stream:
    """How far the predictions of one model version are counted.

    Attributes:
        rows: predictions that arrived.
        chunks: full chunks among them.
        chunk_start: row where the open chunk starts.
    """

    rows: int = 0
    chunks: int = 0
    chunk_start: int = 0


def cut(stream: Stream, rows: int, chunk_rows: int) -> tuple[Stream, list[int]]:
    """Counts `rows` more predictions.

    Returns:
        The stream after them, and the first rows of the chunks that they filled.

    >>> cut(Stream(rows=90, chunks=0, chunk_start=0), 250, 100)
    (Stream(rows=340, chunks=3, chunk_start=300), [0, 100, 200])
    """
    end = stream.rows + rows
    starts = list(range(stream.chunk_start, end - chunk_rows + 1, chunk_rows))
    return Stream(
        end, stream.chunks + len(starts), stream.chunk_start + len(starts) * chunk_rows
    ), starts
