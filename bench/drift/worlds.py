"""Worlds to watch: real data in time order, and synthetic shifts of known onset and size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from everloop.demo import flights
from everloop_contracts.pipeline import Pipeline

__all__ = ["CHUNKS", "ONSET", "SYNTHETIC", "World", "declare", "real", "synthetic"]

ROWS, CHUNKS, ONSET = 1_000, 30, 15
REFERENCE_ROWS = 10_000
NUMBERS, CITIES = [f"n{n}" for n in range(7)], ["A", "B", "C", "D", "E"]
TEXTS = ("city", "kind", "class")
WEIGHTS = np.array([1.2, -0.8, 0.6, 0.4, 0.0, 0.0, 0.0])
OUTPUTS = ("score", "label", "target")

Frame = pd.DataFrame


@dataclass(frozen=True)
class World:
    """What a model learned from, and what came then.

    Attributes:
        name: of the kind of world.
        texts: fields that are texts; the others are numbers.
        reference: inputs with `score`, `label` (a boolean) and `target` (0 or 1).
        chunks: the same, in order.
        changed: whether each chunk is another world than the reference; None where nobody knows.
        segments: fields whose values are watched apart.
    """

    name: str
    texts: tuple[str, ...]
    reference: Frame
    chunks: list[Frame]
    changed: list[bool] | None
    segments: tuple[str, ...] = ()

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs."""
        return [str(name) for name in self.reference if name not in OUTPUTS]


def declare(world: World, chunk_rows: int) -> Pipeline:
    """The world's pipeline, with nothing about drift but the defaults."""
    kinds = {name: "string" if name in world.texts else "float" for name in world.inputs}
    return Pipeline.model_validate(
        {
            "pipeline": "world",
            "schema": {
                "id": "id",
                "time": "at",
                "fields": {
                    "id": {"type": "string"},
                    "at": {"type": "timestamp"},
                    **{name: {"type": kind, "nullable": True} for name, kind in kinds.items()},
                    "target": {"type": "bool", "nullable": True},
                },
            },
            "target": {"field": "target", "task": "binary"},
            "features": {
                name: {"kind": "category" if kind == "string" else "number", "of": name}
                for name, kind in kinds.items()
            },
            "training": {"families": ["logistic_regression"]},
            "monitoring": {
                "chunk_rows": chunk_rows,
                "segments": world.segments,
                "drift": {"share": 0.01},  # any feature, as for the others
            },
        }
    )


# --- synthetic --------------------------------------------------------------------------------


def _logistic(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return 1 / (1 + np.exp(-values))


def _rows(
    rng: np.random.Generator,
    rows: int,
    *,
    move: float = 0.0,
    city: str = "",
    late: float = 0.0,
    turned: float = 0.0,
) -> Frame:
    """Rows whose score is the true probability.

    Args:
        rng: where chance comes from.
        rows: how many.
        move: standard deviations that two numbers move.
        city: the only city where they do; all where empty.
        late: how much more often, in log-odds, the target is 1, the inputs of each class being the same.
        turned: share of the strongest number's effect on the target that is turned around, unknown to the score.
    """
    drawn = int(rows * (1 + 3 * bool(late)))
    frame = pd.DataFrame(rng.normal(size=(drawn, len(NUMBERS))), columns=NUMBERS)
    frame["city"] = rng.choice(CITIES, drawn)
    frame["kind"] = rng.choice(["x", "y", "z"], drawn, p=[0.6, 0.3, 0.1])
    frame["class"] = rng.choice(["1", "2"], drawn, p=[0.8, 0.2])
    there = (frame.city == city) if city else np.ones(drawn, dtype=bool)
    frame.loc[there, ["n0", "n4"]] += move
    values = frame[NUMBERS].to_numpy()
    effects = WEIGHTS.copy()
    effects[0] *= 1 - 2 * turned
    frame["score"] = _logistic(values @ WEIGHTS)
    frame["label"] = frame.score >= 0.5
    frame["target"] = (rng.random(drawn) < _logistic(values @ effects)).astype(float)
    if late:
        weight = np.where(frame.target == 1, np.exp(late), 1.0)
        frame = frame.iloc[rng.choice(drawn, rows, replace=False, p=weight / weight.sum())]
    return frame.reset_index(drop=True)


def _sudden(number: int) -> float:
    return float(number >= ONSET)


def _gradual(number: int) -> float:
    return min(max(number - ONSET + 1, 0) / 10, 1.0)


def _recurring(number: int) -> float:
    return float(number >= ONSET and (number - ONSET) % 6 < 3)


SYNTHETIC: dict[str, tuple[Callable[[int], float], dict[str, object]]] = {
    "quiet": (lambda number: 0.0, {"move": 0.0}),
    "covariate, sudden": (_sudden, {"move": 0.3}),
    "covariate, gradual": (_gradual, {"move": 0.5}),
    "covariate, recurring": (_recurring, {"move": 0.3}),
    "covariate, one segment": (_sudden, {"move": 0.6, "city": "C"}),
    "label, sudden": (_sudden, {"late": 0.7}),
    "concept, sudden": (_sudden, {"turned": 0.4}),
    "concept, gradual": (_gradual, {"turned": 0.6}),
}
"""How far a shift has come in each chunk, and what it is when it is whole."""


def synthetic(name: str, seed: int) -> World:
    """A world of that name."""
    how_far, shift = SYNTHETIC[name]
    rng = np.random.default_rng(seed)
    reference = _rows(rng, REFERENCE_ROWS)
    chunks = []
    for number in range(CHUNKS):
        share = how_far(number)
        scaled = {k: v * share if isinstance(v, float) else v for k, v in shift.items()}
        chunks.append(_rows(rng, ROWS, **scaled))  # type: ignore[arg-type]
    changed = [how_far(number) > 0 for number in range(CHUNKS)]
    return World(name, TEXTS, reference, chunks, changed, ("city",))


# --- real -------------------------------------------------------------------------------------


def real(limit: int) -> Iterator[World]:
    """Flights of 2013 in time order; the two real data sets that NannyML ships. At most `limit` chunks of each."""
    os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
    import nannyml

    yield _flights(limit)
    reference, later, targets = nannyml.load_us_census_ma_employment_data()
    outputs = {"predicted_probability": "score", "prediction": "label", "employed": "target"}
    later = later.merge(targets, on="id")
    yield _world("census employment", reference, later, outputs, 5_000, limit)
    reference, later, targets = nannyml.load_modified_california_housing_dataset()
    outputs = {"y_pred_proba": "score", "y_pred": "label", "clf_target": "target"}
    later = later.merge(targets, on="id")
    yield _world("california housing", reference, later, outputs, 500, limit)


def _world(
    name: str, reference: Frame, later: Frame, outputs: dict[str, str], rows: int, limit: int
) -> World:
    unused = {"id", "timestamp", "year"}
    reference, later = (frame.rename(columns=outputs) for frame in (reference, later))
    kept = [str(column) for column in reference if column not in unused]
    texts = tuple(
        column for column in kept if column not in OUTPUTS and _is_text(reference[column])
    )
    reference, later = (_typed(frame[kept], texts) for frame in (reference, later))
    starts = range(0, min(len(later), limit * rows) - rows + 1, rows)
    chunks = [later.iloc[start : start + rows].reset_index(drop=True) for start in starts]
    return World(name, texts, reference, chunks, None)


def _is_text(column: pd.Series[Any]) -> bool:
    return not pd.api.types.is_numeric_dtype(column) or column.nunique() <= 10


def _typed(frame: Frame, texts: tuple[str, ...]) -> Frame:
    return frame.assign(
        **{name: frame[name].astype(str).astype(object) for name in texts},
        **{
            name: pd.to_numeric(frame[name]).astype(float)
            for name in map(str, frame)
            if name not in texts and name not in OUTPUTS
        },
        label=frame.label.astype(float) == 1,
        target=frame.target.astype(float),
    ).reset_index(drop=True)


def _flights(limit: int) -> World:
    """A model of January and February; March is the reference, April to December come then."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    year = flights.load()
    clock = pd.to_datetime(year.wall_clock, unit="s")
    records = year.frame.drop(columns=["flight_id", "scheduled_departure"])
    records["hour"], records["weekday"] = clock.hour.astype(float), clock.weekday.astype(float)
    records["target"] = records.pop("late").map({True: 1.0, False: 0.0}).astype(float)
    known = records.target.notna().to_numpy()
    records, month = records[known], year.month[known]
    texts = ("carrier", "origin", "destination")
    coded = records.assign(**{n: records[n].astype("category").cat.codes for n in texts})
    x = coded.drop(columns="target").astype(float)
    taught = month <= 2
    model = HistGradientBoostingClassifier(max_iter=80, random_state=7)
    model.fit(x[taught], records.target[taught])
    scored = records.assign(score=model.predict_proba(x)[:, 1])
    threshold = scored.score[taught].quantile(1 - records.target[taught].mean())
    scored["label"] = scored.score >= threshold
    return _world("flights 2013", scored[month == 3], scored[month > 3], {}, 5_000, limit)
