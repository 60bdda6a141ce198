"""A transformer over the features of a row (Gorishniy et al. 2021, "Revisiting Deep Learning Models for Tabular Data").

Every number is a token of its own, and so is every category: its one-hot columns add up to one embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from everloop_contracts.pipeline import Task
from everloop_features import Encoding
from everloop_features.graph import FEATURES, make_model
from everloop_trainer.families.family import (
    Choice,
    Family,
    Floats,
    Params,
    Problem,
    Range,
    Report,
    Space,
)
from everloop_trainer.families.network import Trainable, fit_network, probabilities_of

if TYPE_CHECKING:
    import torch

EPOCHS: Final = 9
HEADS: Final = 4
AT_ONCE: Final = 4096
"""Rows that are predicted at a time."""


@dataclass(frozen=True, slots=True)
class Transformer:
    """A fitted model, free of PyTorch.

    Attributes:
        arrays: every parameter by name; the head answers in the target's own units.
        blocks: how many layers of attention there are.
    """

    arrays: Mapping[str, Floats]
    blocks: int


class TransformerFamily:
    """Learns attention between the features, by AdamW."""

    encoding: ClassVar[Encoding] = "dense"
    space: ClassVar[Space] = {
        "width": Choice((16, 32, 64), default=16),
        "blocks": Range(1, 3, default=2, whole=True),
        "learning_rate": Range(5e-4, 1e-2, default=3e-3, log=True),
        "weight_decay": Range(1e-5, 1e-1, default=1e-3, log=True),
        "batch": Choice((256, 512, 1024), default=256),
    }

    def fit(
        self,
        problem: Problem,
        features: Floats,
        target: npt.NDArray[Any],
        params: Params,
        seed: int,
        report: Report | None = None,
        weights: Floats | None = None,
    ) -> Transformer:
        """Fits `EPOCHS` passes over the rows."""
        import torch

        owners = tokens_of(features)
        blocks = int(params["blocks"])

        def build(outputs: int, device: str) -> Trainable:
            learned = {
                name: torch.nn.Parameter(value.to(device))
                for name, value in _start(owners, outputs, params).items()
            }
            place = torch.nn.functional.one_hot(torch.from_numpy(owners)).float().to(device)
            return Trainable(
                list(learned.values()),
                partial(_forward, learned, place, blocks),
                partial(_fitted, learned, place, blocks),
                lambda model: partial(self.predict, problem, model),
            )

        fitted: Transformer = fit_network(
            problem, build, features, target, params, seed, EPOCHS, report, weights
        )
        return fitted

    def predict(self, problem: Problem, model: Transformer, features: Floats) -> Floats:
        """Probabilities of the classes, or numbers."""
        import torch

        arrays = {name: torch.from_numpy(array) for name, array in model.arrays.items()}
        with torch.no_grad():
            parts = [
                _attend(arrays, torch.from_numpy(np.array(part)), model.blocks).numpy()
                for part in np.split(features, range(AT_ONCE, len(features), AT_ONCE))
            ]
        return probabilities_of(problem, np.concatenate(parts))

    def to_onnx(self, problem: Problem, model: Transformer, width: int) -> onnx.ModelProto:
        """The same steps, one node each."""
        return _graph(problem, model, width)


def tokens_of(features: Floats) -> npt.NDArray[np.int64]:
    """Which token each column belongs to: columns of zeros and ones that follow each other and add up to one are one.

    Example:
        >>> tokens_of(np.array([[0.5, 1, 0, 0, 1], [0.1, 0, 1, 0, 1], [2.0, 0, 0, 1, 1]], np.float32))
        array([0, 1, 1, 1, 2])
    """
    binary = ((features == 0) | (features == 1)).all(axis=0)
    owners = np.empty(features.shape[1], dtype=np.int64)
    token, total = 0, np.zeros(len(features), dtype=np.float32)
    for column in range(features.shape[1]):
        owners[column] = token
        total = total + features[:, column]
        more = column + 1 < features.shape[1] and binary[column + 1]
        if not binary[column] or (total == 1).all() or not more:
            token, total = token + 1, np.zeros(len(features), dtype=np.float32)
    return owners


def _start(owners: npt.NDArray[np.int64], outputs: int, params: Params) -> dict[str, torch.Tensor]:
    """Parameters before the first step, uniform within the reciprocal root of their inputs."""
    import torch

    width, tokens = int(params["width"]), int(owners.max()) + 1

    def uniform(*shape: int, inputs: int) -> torch.Tensor:
        bound = 1 / math.sqrt(inputs)
        return torch.empty(shape).uniform_(-bound, bound)

    found = {
        "embedding": uniform(len(owners), width, inputs=width),
        "bias": uniform(tokens, width, inputs=width),
        "cls": uniform(1, width, inputs=width),
    }
    for block in range(int(params["blocks"])):
        for name in ("query", "key", "value", "joined"):
            found[f"{name}_{block}"] = uniform(width, width, inputs=width)
        found[f"grown_{block}"] = uniform(width, 2 * width, inputs=width)
        found[f"grown_bias_{block}"] = torch.zeros(2 * width)
        found[f"shrunk_{block}"] = uniform(2 * width, width, inputs=2 * width)
        found[f"shrunk_bias_{block}"] = torch.zeros(width)
        for name in ("before", "between"):
            found |= _norm(f"{name}_{block}", width)
    found |= _norm("last", width)
    found["head"] = uniform(width, outputs, inputs=width)
    found["head_bias"] = torch.zeros(outputs)
    return found


def _norm(name: str, width: int) -> dict[str, torch.Tensor]:
    import torch

    return {f"{name}_scale": torch.ones(width), f"{name}_shift": torch.zeros(width)}


def _projection(learned: Mapping[str, torch.Tensor], place: torch.Tensor) -> torch.Tensor:
    """`[columns, tokens * width]`: what makes all tokens of a row by one product."""
    embedding = learned["embedding"]
    return (place[:, :, None] * embedding[:, None, :]).reshape(len(place), -1)


def _forward(
    learned: Mapping[str, torch.Tensor], place: torch.Tensor, blocks: int, rows: torch.Tensor
) -> torch.Tensor:
    return _attend({**learned, "projection": _projection(learned, place)}, rows, blocks)


def _attend(arrays: Mapping[str, torch.Tensor], rows: torch.Tensor, blocks: int) -> torch.Tensor:
    """`[rows, columns]` to `[rows, outputs]`."""
    import torch
    from torch.nn.functional import layer_norm, relu

    tokens, width = arrays["bias"].shape

    def norm(value: torch.Tensor, name: str) -> torch.Tensor:
        scale, shift = arrays[f"{name}_scale"], arrays[f"{name}_shift"]
        return layer_norm(value, (width,), scale, shift)

    def split(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(len(rows), -1, HEADS, width // HEADS).transpose(1, 2)

    made = (rows @ arrays["projection"]).reshape(len(rows), tokens, width) + arrays["bias"]
    value = torch.cat([arrays["cls"].expand(len(rows), 1, width), made], dim=1)
    for block in range(blocks):
        seen = norm(value, f"before_{block}")
        query, key, content = (
            split(seen @ arrays[f"{name}_{block}"]) for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(2, 3) * (width // HEADS) ** -0.5
        mixed = (scores.softmax(dim=3) @ content).transpose(1, 2).reshape(value.shape)
        value = value + mixed @ arrays[f"joined_{block}"]
        seen = norm(value, f"between_{block}")
        grown = relu(seen @ arrays[f"grown_{block}"] + arrays[f"grown_bias_{block}"])
        value = value + grown @ arrays[f"shrunk_{block}"] + arrays[f"shrunk_bias_{block}"]
    return relu(norm(value[:, 0], "last")) @ arrays["head"] + arrays["head_bias"]


def _fitted(
    learned: Mapping[str, torch.Tensor],
    place: torch.Tensor,
    blocks: int,
    centre: float,
    spread: float,
) -> Transformer:
    tensors = {**learned, "projection": _projection(learned, place)}
    arrays = {
        name: tensor.detach().cpu().numpy().copy()
        for name, tensor in tensors.items()
        if name != "embedding"
    }
    arrays["head"] = arrays["head"] * np.float32(spread)
    arrays["head_bias"] = arrays["head_bias"] * np.float32(spread) + np.float32(centre)
    return Transformer(arrays, blocks)


def _graph(problem: Problem, model: Transformer, columns: int) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    constants = [numpy_helper.from_array(array, name) for name, array in model.arrays.items()]
    tokens, width = model.arrays["bias"].shape
    size = width // HEADS

    def constant(values: npt.ArrayLike, dtype: type[np.generic]) -> str:
        name = f"constant_{len(constants)}"
        constants.append(numpy_helper.from_array(np.asarray(values, dtype=dtype), name))
        return name

    def add(operator: str, *inputs: str, output: str = "", **options: Any) -> str:
        name = output or f"step_{len(nodes)}"
        nodes.append(helper.make_node(operator, list(inputs), [name], **options))
        return name

    def shaped(value: str, *shape: int) -> str:
        return add("Reshape", value, constant(shape, np.int64))

    def norm(value: str, name: str) -> str:
        return add("LayerNormalization", value, f"{name}_scale", f"{name}_shift", epsilon=1e-5)

    def split(value: str, name: str) -> str:
        parts = shaped(add("MatMul", value, name), 0, -1, HEADS, size)
        return add("Transpose", parts, perm=[0, 2, 1, 3])

    made = add("Add", shaped(add("MatMul", FEATURES, "projection"), -1, tokens, width), "bias")
    # The token that gathers what the others know, once for each row.
    rows = add("Shape", FEATURES, start=0, end=1)
    shape = add("Concat", rows, constant([1, width], np.int64), axis=0)
    value = add("Concat", add("Expand", "cls", shape), made, axis=1)
    for block in range(model.blocks):
        seen = norm(value, f"before_{block}")
        query, key, content = (split(seen, f"{name}_{block}") for name in ("query", "key", "value"))
        scores = add("MatMul", query, add("Transpose", key, perm=[0, 1, 3, 2]))
        scaled = add("Mul", scores, constant(size**-0.5, np.float32))
        mixed = add("MatMul", add("Softmax", scaled, axis=3), content)
        joined = shaped(add("Transpose", mixed, perm=[0, 2, 1, 3]), 0, -1, width)
        value = add("Add", value, add("MatMul", joined, f"joined_{block}"))
        seen = norm(value, f"between_{block}")
        grown = add("Add", add("MatMul", seen, f"grown_{block}"), f"grown_bias_{block}")
        shrunk = add("MatMul", add("Relu", grown), f"shrunk_{block}")
        value = add("Add", value, add("Add", shrunk, f"shrunk_bias_{block}"))
    first = add("Gather", value, constant(0, np.int64), axis=1)
    answer = add("MatMul", add("Relu", norm(first, "last")), "head")
    output = "score" if problem.task is Task.REGRESSION else "probabilities"
    if problem.task is Task.REGRESSION:
        add("Add", answer, "head_bias", output=output)
    elif problem.task is Task.MULTICLASS:
        add("Softmax", add("Add", answer, "head_bias"), output=output, axis=1)
    else:
        logits = add("Mul", add("Add", answer, "head_bias"), constant([[-1, 1]], np.float32))
        add("Sigmoid", logits, output=output)
    return make_model(
        nodes,
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", columns])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", problem.classes or 1])],
        constants,
    )


FAMILY: Final[Family] = TransformerFamily()
