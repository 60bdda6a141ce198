"""Averages of trees that each saw a part of the rows and columns."""

from __future__ import annotations

from typing import Any, ClassVar, Final

import numpy.typing as npt
import onnx
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from everloop_contracts.pipeline import Task
from everloop_features import Encoding
from everloop_trainer.families.estimators import fit_in_stages, predict_by
from everloop_trainer.families.family import Family, Floats, Params, Problem, Range, Report, Space
from everloop_trainer.families.trees import Tree, trees_to_onnx


class ForestFamily:
    """Learns trees side by side; missing values choose their side of a split."""

    encoding: ClassVar[Encoding] = "ordinal"
    space: ClassVar[Space] = {
        "trees": Range(50, 150, default=60, whole=True),
        "depth": Range(6, 14, default=12, whole=True),
        "leaf_rows": Range(5, 200, default=20, log=True, whole=True),
        "columns": Range(0.2, 1.0, default=0.4),
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
        """Fits in stages where somebody asks, in one go otherwise."""
        regression = problem.task is Task.REGRESSION
        total = int(params["trees"])
        model = (RandomForestRegressor if regression else RandomForestClassifier)(
            n_estimators=total,
            max_depth=int(params["depth"]),
            min_samples_leaf=int(params["leaf_rows"]),
            max_features=params["columns"],
            max_samples=0.5,
            warm_start=report is not None,
            random_state=seed,
        )
        return fit_in_stages(
            problem, model, "n_estimators", total, features, target, report, weights
        )

    def predict(self, problem: Problem, model: Any, features: Floats) -> Floats:
        """Probabilities of the fitted classes, or numbers."""
        return predict_by(problem, model, features)

    def to_onnx(self, problem: Problem, model: Any, width: int) -> onnx.ModelProto:
        """All trees as one node, each adding its share of the average."""
        trees = [_tree(estimator.tree_, len(model.estimators_)) for estimator in model.estimators_]
        return trees_to_onnx(problem, trees, [0.0] * (problem.classes or 1), width)


def _tree(tree: Any, count: int) -> Tree:
    return Tree(
        leaf=tree.children_left < 0,
        feature=tree.feature,
        threshold=tree.threshold,
        missing_left=tree.missing_go_to_left.astype(bool),
        left=tree.children_left,
        right=tree.children_right,
        # [nodes, 1, classes], shares of each class, or the mean for numbers
        values=tree.value[:, 0, :] / count,
    )


FAMILY: Final[Family] = ForestFamily()
