"""What a row costs in the graph that inference serves, beside the same model asked through scikit-learn.

Both start from the same raw columns and end at probabilities; features are part of both. One thread each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnxruntime
from matplotlib.figure import Figure
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from bench.flights_model import Taught, fitted, taught
from bench.report import Result, load_before, medians, write
from everloop_features import Feeds

FAMILIES = ("logistic_regression", "hist_gradient_boosting", "random_forest", "mlp")
SIZES = (1, 64)
REPEATS = 5
SECONDS = 0.4

Ask = Callable[[Feeds], Any]


def main() -> None:
    """Measures every family at every size, ours and the library's in turn."""
    load = load_before()
    sample = taught()
    figures: list[dict[str, float | str]] = []
    ratios: dict[str, float] = {}
    for name in FAMILIES:
        served, native = teach(sample, name)
        for size in SIZES:
            rows = {key: value[:size] for key, value in sample.feeds.items()}
            assert np.allclose(served(rows), native(rows), atol=1e-4)
            pairs = measure(served, native, rows)
            ours, theirs = (medians([pair[side] * 1e6 for pair in pairs]) for side in (0, 1))
            figures.append({"family": name, "rows": size, "graph µs": ours, "library µs": theirs})
            ratios[f"{name}.{size}.vs_library"] = medians([b / a for a, b in pairs])
    write(
        Result(
            "scoring",
            "One call of the served graph beside the library that fitted the model",
            figures,
            ratios,
            "One thread each. A ratio above 1 means the graph is faster. For `mlp` the library is NumPy, not PyTorch.",
            load,
        ),
        plot(ratios),
    )


def teach(sample: Taught, name: str) -> tuple[Ask, Ask]:
    """Fits a family; returns how its graph and how the library itself are asked for probabilities."""
    family, model, graph = fitted(sample, name)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options)

    def served(rows: Feeds) -> Any:
        return session.run(None, rows)[0]

    def native(rows: Feeds) -> Any:
        matrix = sample.features.transform(rows, family.encoding)
        return family.predict(sample.problem, model, matrix)

    return served, native


def measure(served: Ask, native: Ask, rows: Feeds) -> list[tuple[float, float]]:
    """Seconds per call of both, in turn, `REPEATS` times."""
    # Here and not around everything: the limit holds for libraries that are loaded, and a family loads its own.
    with threadpool_limits(1):
        assert all(pool["num_threads"] == 1 for pool in threadpool_info())
        return [
            (seconds_per_call(served, rows), seconds_per_call(native, rows)) for _ in range(REPEATS)
        ]


def seconds_per_call(ask: Ask, rows: Feeds) -> float:
    """Mean over calls that fill `SECONDS`."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < SECONDS:
        ask(rows)
        calls += 1
    return took / calls


def plot(ratios: Mapping[str, float]) -> Figure:
    """Draws the ratios as bars."""
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    axes.barh(list(ratios)[::-1], list(ratios.values())[::-1], color="#4c86a8")
    axes.axvline(1.0, color="#8a97a3", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than the library")
    return figure


if __name__ == "__main__":
    main()
