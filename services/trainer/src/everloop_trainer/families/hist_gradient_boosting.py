"""Gradient-boosted trees on binned features."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from everloop_contracts.pipeline import Task
from everloop_features import Encoding
from everloop_trainer.families.estimators import fit_in_stages, predict_by
from everloop_trainer.families.family import Family, Floats, Params, Problem, Range, Report, Space
from everloop_trainer.families.trees import Tree, trees_to_onnx


class BoostingFamily:
    """Learns trees one after another; missing values choose their side of a split."""

    encoding: ClassVar[Encoding] = "ordinal"
    space: ClassVar[Space] = {
        "learning_rate": Range(0.03, 0.3, default=0.05, log=True),
        "iterations": Range(50, 200, default=150, whole=True),
        "leaves": Range(15, 63, default=31, whole=True),
        "leaf_rows": Range(10, 200, default=100, log=True, whole=True),
        "l2": Range(1e-3, 10, default=1e-3, log=True),
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
    ) -> Any:
        """Fits in stages where somebody asks, in one go otherwise; the outcome is the same."""
        kind = (
            HistGradientBoostingRegressor
            if problem.task is Task.REGRESSION
            else HistGradientBoostingClassifier
        )
        total = int(params["iterations"])
        model = kind(
            learning_rate=params["learning_rate"],
            max_iter=total,
            max_leaf_nodes=int(params["leaves"]),
            min_samples_leaf=int(params["leaf_rows"]),
            l2_regularization=params["l2"],
            early_stopping=False,
            warm_start=report is not None,
            random_state=seed,
        )
        return fit_in_stages(problem, model, "max_iter", total, features, target, report, weights)

    def predict(self, problem: Problem, model: Any, features: Floats) -> Floats:
        """Probabilities of the fitted classes, or numbers."""
        return predict_by(problem, model, features)

    def to_onnx(self, problem: Problem, model: Any, width: int) -> onnx.ModelProto:
        """All trees as one node, each adding to its class's sum."""
        base = np.asarray(model._baseline_prediction, dtype=np.float64).ravel()
        trees = [
            _tree(predictor.nodes, output, len(base))
            for stage in model._predictors
            for output, predictor in enumerate(stage)
        ]
        links = {Task.BINARY: "Sigmoid", Task.MULTICLASS: "Softmax", Task.REGRESSION: ""}
        return trees_to_onnx(problem, trees, base.tolist(), width, links[problem.task])


def _tree(nodes: npt.NDArray[np.void], output: int, outputs: int) -> Tree:
    values = np.zeros((len(nodes), outputs))
    values[:, output] = nodes["value"]
    return Tree(
        leaf=nodes["is_leaf"].astype(bool),
        feature=nodes["feature_idx"],
        threshold=nodes["num_threshold"],
        missing_left=nodes["missing_go_to_left"].astype(bool),
        left=nodes["left"],
        right=nodes["right"],
        values=values,
    )


FAMILY: Final[Family] = BoostingFamily()
