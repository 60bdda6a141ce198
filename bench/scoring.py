"""What a row costs in the graph that inference serves, beside the same model asked through scikit-learn.

Both start from the same raw columns and end at probabilities; features are part of both. One thread each.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench.flights_model import fitted, taught
from bench.report import Result, medians, write

FAMILIES = ("logistic_regression", "hist_gradient_boosting", "random_forest", "mlp")
SIZES = (1, 64)
REPEATS = 5
SECONDS = 0.4


def seconds_per_call(ask: Callable[[], Any]) -> float:
    """Mean over calls that fill `SECONDS`."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        ask()
        calls += 1
    return took / calls


def main() -> None:
    """Measures every family at every size, ours and scikit-learn's in turn."""
    sample = taught()
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    for name in FAMILIES:
        family, model, graph = fitted(sample, name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(graph.SerializeToString(), options)
        for size in SIZES:
            rows = {key: value[:size] for key, value in sample.feeds.items()}

            def served(rows: Any = rows, session: Any = session) -> Any:
                return session.run(None, rows)

            def native(rows: Any = rows, family: Any = family, model: Any = model) -> Any:
                matrix = sample.features.transform(rows, family.encoding)
                return family.predict(sample.problem, model, matrix)

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
