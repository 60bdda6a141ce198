"""Predictions of a made-up model, as many features wide as wanted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from bench.drift.worlds import World
from everloop_contracts.stubs.everloop.inference.v1.events_pb2 import PredictionsLogged

__all__ = ["CHUNK_ROWS", "events", "world"]

CHUNK_ROWS = 5_000
REFERENCE_ROWS = 20_000
_VALUES_PER_EVENT = 50_000
"""Values that an event holds: below what a broker takes by default."""
_WORDS = np.array([f"word {n}" for n in range(20)], dtype=object)


def world(features: int, chunks: int, seed: int = 7) -> World:
    """As many features, three of ten texts, and chunks that are like the reference."""
    rng = np.random.default_rng(seed)
    texts = tuple(f"t{n}" for n in range(features * 3 // 10))
    numbers = [f"n{n}" for n in range(features - len(texts))]

    def rows(count: int) -> pd.DataFrame:
        frame = pd.DataFrame(rng.normal(size=(count, len(numbers))), columns=numbers)
        frame = frame.assign(**{name: rng.choice(_WORDS, count) for name in texts})
        score = 1 / (1 + np.exp(-frame.n0 - frame.n1))
        target = (rng.random(count) < score).astype(float)
        return frame.assign(score=score, label=score >= 0.5, target=target)

    return World(
        "traffic", texts, rows(REFERENCE_ROWS), [rows(CHUNK_ROWS) for _ in range(chunks)], None
    )


def events(world: World, chunk: pd.DataFrame, first: int) -> Iterator[PredictionsLogged]:
    """The events of a chunk whose first row has the number `first`."""
    size = min(1_000, _VALUES_PER_EVENT // len(world.inputs))
    for start in range(0, len(chunk), size):
        part = chunk.iloc[start : start + size]
        ids = range(first + start, first + start + len(part))
        event = PredictionsLogged(
            pipeline="world",
            model_version=1,
            prediction_ids=[f"00000000000000aa-{n:x}" for n in ids],
            record_ids=[f"r{n}" for n in ids],
            time_micros=[1_400_000_000_000_000 + n for n in ids],
            labels=np.where(part.label, "true", "false").tolist(),
            scores=part.score.tolist(),
        )
        for name in world.inputs:
            values = part[name].tolist()
            kind = "texts" if name in world.texts else "numbers"
            event.columns.add(name=name, **{kind: values})
        yield event
