"""Making probabilities those of the data, by what rows that did not teach say about them; ONNX included.

All arithmetic is float32, in the order of the graph, so that both give the same values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

__all__ = ["Calibrator", "Curve", "Line", "calibrate"]

Floats = npt.NDArray[np.float32]
LEAST: Final = np.float32(1e-6)
"""Probabilities below it count as this much: their logarithm is finite."""
CLOSEST: Final = 1e-3
"""Points of a curve are at least this far apart: a steeper rise would turn a rounding error into a step."""
OUTPUT: Final = "probabilities"


@dataclass(frozen=True, slots=True)
class Line:
    """A sigmoid of `slope * log-odds + offset` (Platt 1999)."""

    slope: float
    offset: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Straight lines between points `(x, y)`, level outside of them."""

    x: Floats
    y: Floats


@dataclass(frozen=True, slots=True)
class Calibrator:
    """One line or curve for each class, or for the positive one of two; the sum over the classes is made one again."""

    parts: tuple[Line, ...] | tuple[Curve, ...]

    def __call__(self, probabilities: Floats) -> Floats:
        """Calibrates `[rows, classes]`."""
        binary = len(self.parts) == 1
        if isinstance(self.parts[0], Line):
            odds = _log_odds(probabilities)
            slopes, offsets = self._lines()
            moved = odds * slopes + offsets
            if binary:
                moved = np.concatenate([-moved, moved], axis=1)
            with np.errstate(over="ignore"):
                shares = np.float32(1) / (np.float32(1) + np.exp(-moved))
        else:
            columns = [1] if binary else range(probabilities.shape[1])
            parts = [
                _bent(curve, probabilities[:, [column]])
                for curve, column in zip(self._curves(), columns, strict=True)
            ]
            shares = np.concatenate([1 - parts[0], *parts] if binary else parts, axis=1)
        if binary:
            return np.asarray(shares, dtype=np.float32)
        return np.asarray(shares / shares.sum(axis=1, keepdims=True), dtype=np.float32)

    def attach(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Puts itself behind a model whose output is `probabilities`; returns it as a new one."""
        joined = onnx.ModelProto()
        joined.CopyFrom(model)
        graph = joined.graph
        raw = "uncalibrated"
        for node in graph.node:
            for index, name in enumerate(node.output):
                if name == OUTPUT:
                    node.output[index] = raw
        nodes = _Nodes()
        lines = isinstance(self.parts[0], Line)
        last = (self._line_nodes if lines else self._curve_nodes)(nodes, raw)
        if len(self.parts) == 1:
            nodes.add("Identity", last, output=OUTPUT)
        else:
            total = nodes.add("ReduceSum", last, nodes.constant([1], np.int64), keepdims=1)
            nodes.add("Div", last, total, output=OUTPUT)
        graph.node.extend(nodes.nodes)
        graph.initializer.extend(nodes.constants)
        return joined

    def _lines(self) -> tuple[Floats, Floats]:
        lines = [part for part in self.parts if isinstance(part, Line)]
        slopes = np.array([[line.slope for line in lines]], dtype=np.float32)
        return slopes, np.array([[line.offset for line in lines]], dtype=np.float32)

    def _curves(self) -> list[Curve]:
        return [part for part in self.parts if isinstance(part, Curve)]

    def _line_nodes(self, nodes: _Nodes, raw: str) -> str:
        least, one = nodes.constant(LEAST, np.float32), nodes.constant(1, np.float32)
        logs = nodes.add("Log", nodes.add("Clip", raw, least, one))
        if len(self.parts) == 1:
            second = nodes.add("Gather", logs, nodes.constant([1], np.int64), axis=1)
            first = nodes.add("Gather", logs, nodes.constant([0], np.int64), axis=1)
        else:
            second = logs
            rest = nodes.add("Sub", one, raw)
            first = nodes.add("Log", nodes.add("Clip", rest, least, one))
        odds = nodes.add("Sub", second, first)
        slopes, offsets = self._lines()
        scaled = nodes.add("Mul", odds, nodes.constant(slopes, np.float32))
        moved = nodes.add("Add", scaled, nodes.constant(offsets, np.float32))
        if len(self.parts) == 1:
            moved = nodes.add("Mul", moved, nodes.constant([[-1, 1]], np.float32))
        return nodes.add("Sigmoid", moved)

    def _curve_nodes(self, nodes: _Nodes, raw: str) -> str:
        binary = len(self.parts) == 1
        bent = []
        for number, curve in enumerate(self._curves()):
            column = nodes.constant([1 if binary else number], np.int64)
            value = nodes.add("Gather", raw, column, axis=1)
            widths, rises = _segments(curve)
            past = nodes.add("Sub", value, nodes.constant(curve.x[None, :-1], np.float32))
            share = nodes.add("Div", past, nodes.constant(widths[None], np.float32))
            bounds = nodes.constant(0, np.float32), nodes.constant(1, np.float32)
            climbed = nodes.add(
                "MatMul",
                nodes.add("Clip", share, *bounds),
                nodes.constant(rises[:, None], np.float32),
            )
            bent.append(nodes.add("Add", climbed, nodes.constant(curve.y[0], np.float32)))
        if binary:
            bent = [nodes.add("Sub", nodes.constant(1, np.float32), bent[0]), *bent]
        return nodes.add("Concat", *bent, axis=1)


class _Nodes:
    """Nodes under construction; methods return the name of the value they add."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        name = f"calibration/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(self, operator: str, *inputs: str, output: str = "", **options: Any) -> str:
        name = output or f"calibration/{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **options))
        return name


def calibrate(
    kind: Literal["none", "sigmoid", "isotonic"], target: npt.NDArray[Any], probabilities: Floats
) -> Calibrator | None:
    """Fits a calibrator.

    Args:
        kind: `none` gives None.
        target: `[rows]`, class positions of rows that did not teach the model.
        probabilities: `[rows, classes]`, what the model said about them.
    """
    if kind == "none":
        return None
    fit: Callable[..., Any] = _line if kind == "sigmoid" else _curve
    classes = probabilities.shape[1]
    chosen = [1] if classes == 2 else range(classes)
    odds = _log_odds(probabilities)
    seen = odds if kind == "sigmoid" else probabilities[:, list(chosen)]
    return Calibrator(
        tuple(fit(target == label, seen[:, number]) for number, label in enumerate(chosen))
    )


def _log_odds(probabilities: Floats) -> Floats:
    """`[rows, classes]`, or `[rows, 1]` of the second of two."""
    if probabilities.shape[1] == 2:
        logs = np.log(np.clip(probabilities, LEAST, np.float32(1)))
        return np.asarray(logs[:, [1]] - logs[:, [0]], dtype=np.float32)
    rest = np.clip(np.float32(1) - probabilities, LEAST, np.float32(1))
    logs = np.log(np.clip(probabilities, LEAST, np.float32(1)))
    return np.asarray(logs - np.log(rest), dtype=np.float32)


def _line(positive: npt.NDArray[np.bool_], odds: Floats) -> Line:
    if positive.all() or not positive.any():
        return Line(
            1.0, 0.0
        )  # nothing is known about the other side: probabilities stay as they are
    model = LogisticRegression(C=np.inf, max_iter=1000).fit(odds.reshape(-1, 1), positive)
    return Line(float(model.coef_[0, 0]), float(model.intercept_[0]))


def _curve(positive: npt.NDArray[np.bool_], scores: Floats) -> Curve:
    """Isotonic regression, its level parts drawn together to their middles (Oron & Flournoy 2017).

    Between its ends scores that differ stay different: what ranks them loses nothing to level parts.
    """
    # As far from certainty as rows that were all alike would be (Laplace).
    edge = 1 / (len(scores) + 2)
    model = IsotonicRegression(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
    fitted = model.fit_transform(scores.astype(np.float64), positive)
    levels, owner, counts = np.unique(fitted, return_inverse=True, return_counts=True)
    middles = np.bincount(owner, scores.astype(np.float64)) / counts
    kept = [0]
    for index in range(1, len(middles)):
        if middles[index] - middles[kept[-1]] >= CLOSEST:
            kept.append(index)
    x, y = middles[kept], levels[kept]
    if len(kept) == 1:  # level everywhere
        x, y = np.array([0.0, 1.0]), np.repeat(y, 2)
    return Curve(x.astype(np.float32), y.astype(np.float32))


def _segments(curve: Curve) -> tuple[Floats, Floats]:
    """Width and rise between neighbouring points."""
    return np.diff(curve.x), np.diff(curve.y)


def _bent(curve: Curve, values: Floats) -> Floats:
    """The curve at `[rows, 1]`."""
    widths, rises = _segments(curve)
    shares = np.clip((values - curve.x[None, :-1]) / widths[None], 0, 1)
    return np.asarray(shares @ rises[:, None] + curve.y[0], dtype=np.float32)
