"""What a row costs in the graph that inference serves, beside the same model asked through scikit-learn.

Both start from the same raw columns and end at probabilities; features are part of both. One thread each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench.report import ROOT, Result, medians, write
from everloop.demo import flights
from everloop_contracts.pipeline import Task, load_pipeline
from everloop_features import feeds_from_rows, fit, inputs_of
from everloop_features.graph import compose_model, feature_graph
from everloop_trainer.families import Problem, load_family

FAMILIES = ("logistic_regression", "hist_gradient_boosting", "random_forest", "mlp")
SIZES = (1, 64)
REPEATS = 5
SECONDS = 0.4
TAUGHT_ROWS = 20_000


def seconds_per_call(ask: Callable[[], Any]) -> float:
    """Mean over calls that fill `SECONDS`."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        ask()
        calls += 1
    return took / calls


def main() -> None:
    """Measures every family at every size, ours and scikit-learn's in turn."""
    pipeline = load_pipeline(ROOT / "pipelines" / "flight-delays.yaml")
    year = flights.load(3)
    late = np.array(year.late, dtype=float)
    known = np.flatnonzero(~np.isnan(late))[:TAUGHT_ROWS]
    feeds = feeds_from_rows([json.loads(year.lines[row]) for row in known], inputs_of(pipeline))
    target = late[known].astype(np.int64)
    features = fit(pipeline, feeds, target)
    problem = Problem(Task.BINARY, 2)
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    for name in FAMILIES:
        family = load_family(name)
        matrix = features.transform(feeds, family.encoding)
        params = {key: item.default for key, item in family.space.items()}
        model = family.fit(problem, matrix, target, params, pipeline.training.seed)
        estimator = family.to_onnx(problem, model, matrix.shape[1])
        graph = compose_model(feature_graph(features, family.encoding), estimator)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
        for size in SIZES:
            rows = {key: value[:size] for key, value in feeds.items()}

            def served(rows: Any = rows, session: Any = session) -> Any:
                return session.run(None, rows)

            def native(rows: Any = rows, family: Any = family, model: Any = model) -> Any:
                return family.predict(problem, model, features.transform(rows, family.encoding))

            assert np.allclose(served()[0], native(), atol=1e-4)
            pairs = [(seconds_per_call(served), seconds_per_call(native)) for _ in range(REPEATS)]
            ours, theirs = (
                medians([a * 1e6 for a, _ in pairs]),
                medians([b * 1e6 for _, b in pairs]),
            )
            figures.append({"family": name, "rows": size, "graph µs": ours, "library µs": theirs})
            ratios[f"{name}.{size}.vs_library"] = medians([b / a for a, b in pairs])
    write(
        Result(
            "scoring",
            "One call of the served graph beside the library that fitted the model",
            figures,
            ratios,
            "A ratio above 1 means the graph is faster. For `mlp` the library is NumPy, not PyTorch.",
        ),
        plot(ratios),
    )


def plot(ratios: dict[str, float]) -> Figure:
    """Draws the ratios as bars."""
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    axes.barh(list(ratios)[::-1], list(ratios.values())[::-1], color="#4c86a8")
    axes.axvline(1.0, color="#8a97a3", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the library")
    return figure


if __name__ == "__main__":
    with threadpool_limits(1):
        main()
