"""A small neural network (PyTorch); on the GPU where PyTorch sees one."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy.typing as npt
import onnx

from everloop_features import Encoding
from everloop_trainer.families.family import (
    Family,
    Floats,
    Params,
    Problem,
    Report,
    Space,
)
from everloop_trainer.families.layers import (
    EPOCHS,
    SPACE,
    Layers,
    in_units,
    layers_to_onnx,
    outputs_of,
)
from everloop_trainer.families.network import Trainable, fit_network, probabilities_of

if TYPE_CHECKING:
    # PyTorch takes seconds to import: only a process that fits a network pays for it.
    import torch


class NetworkFamily:
    """Learns dense layers with ReLU between them, by AdamW."""

    encoding: ClassVar[Encoding] = "dense"
    space: ClassVar[Space] = SPACE

    def fit(
        self,
        problem: Problem,
        features: Floats,
        target: npt.NDArray[Any],
        params: Params,
        seed: int,
        report: Report | None = None,
        weights: Floats | None = None,
    ) -> Layers:
        """Fits `EPOCHS` passes over the rows; the model is its layers as arrays, free of PyTorch."""

        def build(outputs: int, device: str) -> Trainable:
            network = _network(features.shape[1], outputs, params).to(device)
            return Trainable(
                list(network.parameters()),
                network,
                partial(_layers, network),
                lambda model: partial(self.predict, problem, model),
            )

        fitted: Layers = fit_network(
            problem, build, features, target, params, seed, EPOCHS, report, weights
        )
        return fitted

    def predict(self, problem: Problem, model: Layers, features: Floats) -> Floats:
        """Probabilities of the classes, or numbers."""
        return probabilities_of(problem, outputs_of(model, features))

    def to_onnx(self, problem: Problem, model: Layers, width: int) -> onnx.ModelProto:
        """The layers themselves: exact, small and without PyTorch's exporter."""
        return layers_to_onnx(problem, model)


def _network(inputs: int, outputs: int, params: Params) -> torch.nn.Sequential:
    from torch import nn

    sizes = [inputs, *[int(params["width"])] * int(params["depth"])]
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs))


def _layers(network: torch.nn.Sequential, centre: float, spread: float) -> Layers:
    """Weights `[inputs, outputs]` and biases; the last layer answers in the target's own units."""
    arrays = [parameter.detach().cpu().numpy().copy() for parameter in network.parameters()]
    layers = [(weight.T, bias) for weight, bias in zip(arrays[0::2], arrays[1::2], strict=True)]
    return in_units(layers, centre, spread)


FAMILY: Final[Family] = NetworkFamily()
