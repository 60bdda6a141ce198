"""What the families that fit a network with PyTorch have in common: batches, steps and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from everloop_contracts.pipeline import Task
from everloop_trainer.families.family import Floats, Params, Predict, Problem, Report
from everloop_trainer.threads import threads

if TYPE_CHECKING:
    # PyTorch takes seconds to import: only a process that fits a network pays for it.
    import torch

__all__ = ["WARM_UP", "Trainable", "fit_network", "probabilities_of", "scale_of"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
WARM_UP: Final = 0.1
"""Share of the steps in which the learning rate rises; it then falls to zero along a cosine."""


class Trainable:
    """A network under training.

    Attributes:
        parameters: what is learned.
        forward: `[rows, columns]` in, `[rows, outputs]` out: logits, or numbers in the target's own spread.
        model: makes the fitted model from the parameters as they are now, given centre and spread of the target.
        predict: makes what predicts with such a model.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        forward: Callable[[torch.Tensor], torch.Tensor],
        model: Callable[[float, float], Any],
        predict: Callable[[Any], Predict],
    ) -> None:
        """Takes the four."""
        self.parameters = parameters
        self.forward = forward
        self.model = model
        self.predict = predict


def fit_network(
    problem: Problem,
    build: Callable[[int, str], Trainable],
    features: Floats,
    target: npt.NDArray[Any],
    params: Params,
    seed: int,
    epochs: int,
    report: Report | None,
    weights: Floats | None,
) -> Any:
    """Fits `epochs` passes over the rows by AdamW; on the GPU where PyTorch sees one.

    Args:
        problem: what is to be learned.
        build: makes the network for a number of outputs on a device.
        features: `[rows, columns]`.
        target: `[rows]`.
        params: `batch`, `learning_rate` and `weight_decay` among them.
        seed: makes the outcome repeatable.
        epochs: passes.
        report: told about every pass.
        weights: `[rows]`, or None where all rows count alike.
    """
    import torch

    torch.set_num_threads(min(torch.get_num_threads(), threads()))
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    outputs = problem.classes if problem.task is Task.MULTICLASS else 1
    centre, spread = scale_of(problem, target)
    network = build(outputs, device)
    rows = torch.from_numpy(features).to(device)
    answers = _answers(problem, (target - centre) / spread).to(device)
    shares = None if weights is None else torch.from_numpy(weights).to(device)
    batch = int(params["batch"])
    steps = -(-len(rows) // batch)
    update = _adamw(network.parameters, params, total=epochs * steps)
    loss_of = _loss(problem)
    for epoch in range(epochs):
        for chosen in torch.randperm(len(rows), device=device).split(batch):
            for parameter in network.parameters:
                parameter.grad = None
            losses = loss_of(network.forward(rows[chosen]), answers[chosen]).reshape(len(chosen))
            (losses if shares is None else losses * shares[chosen]).mean().backward()
            update()
        if report:
            report((epoch + 1) / epochs, network.predict(network.model(centre, spread)))
    return network.model(centre, spread)


def probabilities_of(problem: Problem, value: Floats) -> Floats:
    """Logits as probabilities of the classes; numbers as they are."""
    if problem.task is Task.REGRESSION:
        return value
    if problem.task is Task.BINARY:
        value = np.concatenate([np.zeros_like(value), value], axis=1)
    powers = np.exp(value - value.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float32)


def scale_of(problem: Problem, target: npt.NDArray[Any]) -> tuple[float, float]:
    """Centre and spread that numbers are learned in; classes are left alone."""
    if problem.task is not Task.REGRESSION:
        return 0.0, 1.0
    return float(np.mean(target)), float(np.std(target)) or 1.0


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
