"""A small neural network (PyTorch); on the GPU where PyTorch sees one."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx

from everloop_contracts.pipeline import Task
from everloop_features import Encoding
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
from everloop_trainer.families.layers import layers_to_onnx
from everloop_trainer.threads import threads

if TYPE_CHECKING:
    # PyTorch takes seconds to import: only a process that fits a network pays for it.
    import torch

EPOCHS: Final = 9
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
WARM_UP: Final = 0.1
"""Share of the steps in which the learning rate rises; it then falls to zero along a cosine."""

Layers = list[tuple[Floats, Floats]]


class NetworkFamily:
    """Learns dense layers with ReLU between them, by AdamW."""

    encoding: ClassVar[Encoding] = "dense"
    space: ClassVar[Space] = {
        "width": Choice((32, 64, 128), default=64),
        "depth": Range(1, 2, default=2, whole=True),
        "learning_rate": Range(1e-3, 2e-2, default=2e-3, log=True),
        "weight_decay": Range(1e-5, 1.0, default=1e-1, log=True),
        "batch": Choice((256, 512, 1024), default=512),
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
    ) -> Layers:
        """Fits `EPOCHS` passes over the rows; the model is its layers as arrays, free of PyTorch."""
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), threads()))
        torch.manual_seed(seed)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        outputs = problem.classes if problem.task is Task.MULTICLASS else 1
        centre, spread = _scale(problem, target)
        network = _network(features.shape[1], outputs, params).to(device)
        rows = torch.from_numpy(features).to(device)
        answers = _answers(problem, (target - centre) / spread).to(device)
        shares = None if weights is None else torch.from_numpy(weights).to(device)
        batch = int(params["batch"])
        steps = -(-len(rows) // batch)
        update = _adamw(list(network.parameters()), params, total=EPOCHS * steps)
        loss_of = _loss(problem)
        for epoch in range(EPOCHS):
            for chosen in torch.randperm(len(rows), device=device).split(batch):
                network.zero_grad()
                losses = loss_of(network(rows[chosen]), answers[chosen]).reshape(len(chosen))
                (losses if shares is None else losses * shares[chosen]).mean().backward()
                update()
            if report:
                model = _layers(network, centre, spread)
                report((epoch + 1) / EPOCHS, partial(self.predict, problem, model))
        return _layers(network, centre, spread)

    def predict(self, problem: Problem, model: Layers, features: Floats) -> Floats:
        """Probabilities of the classes, or numbers."""
        value = features
        for index, (weight, bias) in enumerate(model):
            value = (np.maximum(value, 0) if index else value) @ weight + bias
        if problem.task is Task.REGRESSION:
            return value
        if problem.task is Task.BINARY:
            value = np.concatenate([np.zeros_like(value), value], axis=1)
        powers = np.exp(value - value.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)

    def to_onnx(self, problem: Problem, model: Layers, width: int) -> onnx.ModelProto:
        """The layers themselves: exact, small and without PyTorch's exporter."""
        return layers_to_onnx(problem, model)


def _scale(problem: Problem, target: npt.NDArray[Any]) -> tuple[float, float]:
    """Centre and spread that numbers are learned in; classes are left alone."""
    if problem.task is not Task.REGRESSION:
        return 0.0, 1.0
    return float(np.mean(target)), float(np.std(target)) or 1.0


def _network(inputs: int, outputs: int, params: Params) -> torch.nn.Sequential:
    from torch import nn

    sizes = [inputs, *[int(params["width"])] * int(params["depth"])]
    parts: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(sizes[-1], outputs))


def _adamw(parameters: list[torch.nn.Parameter], params: Params, total: int) -> Callable[[], None]:
    """Makes the step of AdamW (Loshchilov & Hutter 2019) with warm-up and cosine decay.

    By hand, since `torch.optim` imports PyTorch's compiler: six seconds in every worker, for these lines.
    """
    import torch

    first = [torch.zeros_like(item) for item in parameters]
    second = [torch.zeros_like(item) for item in parameters]
    peak, decay = float(params["learning_rate"]), float(params["weight_decay"])
    step = 0

    @torch.no_grad()
    def update() -> None:
        nonlocal step
        step += 1
        share = step / total
        falling = 0.5 + 0.5 * math.cos(math.pi * max(0.0, share - WARM_UP) / (1 - WARM_UP))
        rate = peak * min(share / WARM_UP, falling)
        for value, mean, square in zip(parameters, first, second, strict=True):
            assert value.grad is not None  # every parameter takes part in the loss
            mean.lerp_(value.grad, 1 - BETA_1)
            square.lerp_(value.grad.square(), 1 - BETA_2)
            spread = (square / (1 - BETA_2**step)).sqrt_().add_(EPSILON)
            value.mul_(1 - rate * decay)
            value.addcdiv_(mean, spread, value=-rate / (1 - BETA_1**step))

    step_once: Callable[[], None] = update
    return step_once


def _answers(problem: Problem, target: npt.NDArray[Any]) -> torch.Tensor:
    import torch

    if problem.task is Task.MULTICLASS:
        return torch.from_numpy(target.astype(np.int64))
    return torch.from_numpy(target.astype(np.float32).reshape(-1, 1))


def _loss(problem: Problem) -> torch.nn.Module:
    """The loss of each row."""
    from torch import nn

    losses: dict[Task, type[nn.Module]] = {
        Task.BINARY: nn.BCEWithLogitsLoss,
        Task.MULTICLASS: nn.CrossEntropyLoss,
        Task.REGRESSION: nn.MSELoss,
    }
    return losses[problem.task](reduction="none")


def _layers(network: torch.nn.Sequential, centre: float, spread: float) -> Layers:
    """Weights `[inputs, outputs]` and biases; the last layer answers in the target's own units."""
    arrays = [parameter.detach().cpu().numpy().copy() for parameter in network.parameters()]
    layers = [(weight.T, bias) for weight, bias in zip(arrays[0::2], arrays[1::2], strict=True)]
    weight, bias = layers[-1]
    layers[-1] = (weight * np.float32(spread), bias * np.float32(spread) + np.float32(centre))
    return layers


FAMILY: Final[Family] = NetworkFamily()
