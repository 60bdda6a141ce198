"""Stacks of dense layers as ONNX: what linear models and neural networks come down to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from everloop_contracts.pipeline import Task
from everloop_features.graph import FEATURES, make_model
from everloop_trainer.families.family import Choice, Floats, Problem, Range, Space

__all__ = ["EPOCHS", "SPACE", "Layers", "in_units", "layers_to_onnx", "outputs_of"]

Layers = list[tuple[Floats, Floats]]
"""Weight `[inputs, outputs]` and bias `[outputs]` of each layer."""
EPOCHS: Final = 9
"""Passes over the rows in which a network of such layers is fitted."""
SPACE: Final[Space] = {
    "width": Choice((32, 64, 128), default=64),
    "depth": Range(1, 2, default=2, whole=True),
    "learning_rate": Range(1e-3, 2e-2, default=2e-3, log=True),
    "weight_decay": Range(1e-5, 1.0, default=1e-1, log=True),
    "batch": Choice((256, 512, 1024), default=512),
}
"""Parameters of a network of such layers, whatever library fits it."""


def in_units(layers: Layers, centre: float, spread: float) -> Layers:
    """Layers whose last one answers in the target's own units, of those that learned it centred and scaled."""
    weight, bias = layers[-1]
    last = (weight * np.float32(spread), bias * np.float32(spread) + np.float32(centre))
    return [*layers[:-1], last]


def outputs_of(layers: Layers, features: Floats) -> Floats:
    """What the last of some `x @ weight + bias` layers says, with ReLU between them: `[rows, outputs]`."""
    value = features
    for index, (weight, bias) in enumerate(layers):
        value = (np.maximum(value, 0) if index else value) @ weight + bias
    return value


def layers_to_onnx(problem: Problem, layers: Sequence[tuple[Floats, Floats]]) -> onnx.ModelProto:
    """Exports `x @ weight + bias` layers with ReLU between them and the task's link at the end.

    Args:
        problem: binary models end in one column, multiclass ones in a column per class.
        layers: weight `[inputs, outputs]` and bias `[outputs]` of each layer.
    """
    nodes, constants = [], []
    value = FEATURES
    for index, (weight, bias) in enumerate(layers):
        if index:
            nodes.append(helper.make_node("Relu", [value], [f"active_{index}"]))
            value = f"active_{index}"
        for name, array in (("weight", weight), ("bias", bias)):
            array = np.ascontiguousarray(array, dtype=np.float32)
            constants.append(numpy_helper.from_array(array, f"{name}_{index}"))
        inputs = [value, f"weight_{index}", f"bias_{index}"]
        value = (
            "score"
            if problem.task is Task.REGRESSION and index == len(layers) - 1
            else f"layer_{index}"
        )
        nodes.append(helper.make_node("Gemm", inputs, [value]))
    output, columns = "score", 1
    if problem.task is Task.MULTICLASS:
        output, columns = "probabilities", problem.classes
        nodes.append(helper.make_node("Softmax", [value], [output], axis=1))
    elif problem.task is Task.BINARY:
        output, columns = "probabilities", 2
        # sigmoid(-z) and not 1 - sigmoid(z): small probabilities keep their digits.
        constants.append(numpy_helper.from_array(np.array([[-1, 1]], dtype=np.float32), "signs"))
        nodes.append(helper.make_node("Mul", [value, "signs"], ["logits"]))
        nodes.append(helper.make_node("Sigmoid", ["logits"], [output]))
    width = layers[0][0].shape[0]
    return make_model(
        nodes,
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", columns])],
        constants,
    )
