"""Sums of decision trees as ONNX, exactly: scikit-learn compares float32 features with float64 thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from everloop_contracts.pipeline import Task
from everloop_features.graph import FEATURES, make_model
from everloop_trainer.families.family import Problem

__all__ = ["Tree", "trees_to_onnx"]


@dataclass(frozen=True, slots=True)
class Tree:
    """One tree: arrays over its nodes, the root first.

    Attributes:
        leaf: whether a node is a leaf.
        feature: column that a split looks at.
        threshold: a row goes left where its value is not larger.
        missing_left: whether a missing value goes left.
        left: node on the left of a split.
        right: node on its right.
        values: `[nodes, outputs]`: what a leaf adds to each output.
    """

    leaf: npt.NDArray[np.bool_]
    feature: npt.NDArray[np.integer[Any]]
    threshold: npt.NDArray[np.float64]
    missing_left: npt.NDArray[np.bool_]
    left: npt.NDArray[np.integer[Any]]
    right: npt.NDArray[np.integer[Any]]
    values: npt.NDArray[np.float64]


def trees_to_onnx(
    problem: Problem,
    trees: Sequence[Tree],
    base: Sequence[float],
    width: int,
    link: str = "",
) -> onnx.ModelProto:
    """Exports the sum of `trees` plus `base` per output.

    Args:
        problem: decides the output's name.
        trees: all with as many outputs as `base` has values.
        base: what each output starts from.
        width: columns of the features.
        link: `Sigmoid` (one output becomes two classes), `Softmax`, or nothing.
    """
    attributes = _attributes(trees)
    output = "score" if problem.task is Task.REGRESSION else "probabilities"
    value = "sums" if link else output
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor",
            [FEATURES],
            [value],
            domain="ai.onnx.ml",
            n_targets=len(base),
            base_values=[float(item) for item in base],
            aggregate_function="SUM",
            post_transform="NONE",
            **attributes,
        )
    ]
    constants = []
    if link == "Sigmoid":
        constants.append(numpy_helper.from_array(np.array([[-1, 1]], dtype=np.float32), "signs"))
        nodes.append(helper.make_node("Mul", [value, "signs"], ["logits"]))
        nodes.append(helper.make_node("Sigmoid", ["logits"], [output]))
    elif link == "Softmax":
        nodes.append(helper.make_node("Softmax", [value], [output], axis=1))
    return make_model(
        nodes,
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["rows", width])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["rows", problem.classes or 1])],
        constants,
    )


def _attributes(trees: Sequence[Tree]) -> dict[str, Any]:
    """The node and leaf arrays of a TreeEnsembleRegressor."""
    sizes = [len(tree.leaf) for tree in trees]
    ids = np.concatenate([np.arange(size) for size in sizes])
    owners = np.repeat(np.arange(len(trees)), sizes)
    leaf = np.concatenate([tree.leaf for tree in trees])
    values = np.concatenate([tree.values for tree in trees])
    outputs = values.shape[1]

    def of_splits(name: str) -> npt.NDArray[Any]:
        joined = np.concatenate([getattr(tree, name) for tree in trees])
        return np.where(leaf, 0, joined)

    return {
        "nodes_treeids": owners.tolist(),
        "nodes_nodeids": ids.tolist(),
        "nodes_modes": np.where(leaf, "LEAF", "BRANCH_LEQ").tolist(),
        "nodes_featureids": of_splits("feature").astype(int).tolist(),
        "nodes_values": _floor(of_splits("threshold")).tolist(),
        "nodes_truenodeids": of_splits("left").astype(int).tolist(),
        "nodes_falsenodeids": of_splits("right").astype(int).tolist(),
        "nodes_missing_value_tracks_true": of_splits("missing_left").astype(int).tolist(),
        "target_treeids": np.repeat(owners[leaf], outputs).tolist(),
        "target_nodeids": np.repeat(ids[leaf], outputs).tolist(),
        "target_ids": np.tile(np.arange(outputs), int(leaf.sum())).tolist(),
        "target_weights": values[leaf].ravel().tolist(),
    }


def _floor(thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """The largest float32 that is not larger: it parts the float32 numbers as the float64 threshold does."""
    bounds = np.finfo(np.float32)
    near = np.clip(thresholds, bounds.min, bounds.max).astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)
