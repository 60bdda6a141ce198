"""A small neural network (Keras on TensorFlow, the extra `tensorflow`); on the GPU where TensorFlow sees one.

What is learned is an array per layer, as with `mlp`: serving, evaluation and export need no TensorFlow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import onnx

from everloop_contracts.pipeline import Task
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
from everloop_trainer.families.network import WARM_UP, probabilities_of, scale_of
from everloop_trainer.threads import threads

if TYPE_CHECKING:
    import keras

if find_spec("tensorflow") is None:
    raise LookupError(
        "the model family 'keras_mlp' needs TensorFlow, which is not installed here: "
        "pip install 'everloop-trainer[tensorflow]', or take 'mlp', which needs none"
    )


class KerasFamily:
    """Learns dense layers with ReLU between them, by Keras' AdamW."""

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
        """Fits `EPOCHS` passes over the rows."""
        keras = _keras(seed)
        centre, spread = scale_of(problem, target)
        batch = int(params["batch"])
        steps = EPOCHS * -(-len(features) // batch)
        network = _network(keras, problem, features.shape[1], params)
        network.compile(_adamw(keras, params, steps), _loss(keras, problem))

        def passed(epoch: int, _: Any) -> None:
            if report:
                layers = _layers(network, centre, spread)
                report((epoch + 1) / EPOCHS, lambda rows: self.predict(problem, layers, rows))

        network.fit(
            features,
            ((target - centre) / spread).astype(np.float32),
            batch_size=batch,
            epochs=EPOCHS,
            verbose=0,
            sample_weight=weights,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=passed)],
        )
        return _layers(network, centre, spread)

    def predict(self, problem: Problem, model: Layers, features: Floats) -> Floats:
        """Probabilities of the classes, or numbers."""
        return probabilities_of(problem, outputs_of(model, features))

    def to_onnx(self, problem: Problem, model: Layers, width: int) -> onnx.ModelProto:
        """The layers themselves."""
        return layers_to_onnx(problem, model)


def _keras(seed: int) -> Any:
    """Keras on TensorFlow, with a seed and as many threads as a fit may use."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras
    import tensorflow

    try:
        tensorflow.config.threading.set_intra_op_parallelism_threads(threads())
        tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass  # an earlier fit of this process has set them
    keras.utils.set_random_seed(seed)
    tensorflow.config.experimental.enable_op_determinism()
    return keras


def _network(keras: Any, problem: Problem, inputs: int, params: Params) -> keras.Sequential:
    dense = keras.layers.Dense
    hidden = [dense(int(params["width"]), activation="relu") for _ in range(int(params["depth"]))]
    last = dense(problem.classes if problem.task is Task.MULTICLASS else 1)
    return keras.Sequential([keras.Input((inputs,)), *hidden, last])


def _adamw(keras: Any, params: Params, steps: int) -> keras.optimizers.Optimizer:
    """With the same warm-up and cosine decay as `mlp`."""
    peak = float(params["learning_rate"])
    warm = max(1, round(steps * WARM_UP))
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, max(1, steps - warm), warmup_target=peak, warmup_steps=warm
    )
    return keras.optimizers.AdamW(rate, weight_decay=float(params["weight_decay"]))


def _loss(keras: Any, problem: Problem) -> Callable[..., Any]:
    losses: dict[Task, Callable[..., Any]] = {
        Task.BINARY: keras.losses.BinaryCrossentropy(from_logits=True),
        Task.MULTICLASS: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        Task.REGRESSION: keras.losses.MeanSquaredError(),
    }
    return losses[problem.task]


def _layers(network: keras.Sequential, centre: float, spread: float) -> Layers:
    """Weights `[inputs, outputs]` and biases; the last layer answers in the target's own units."""
    arrays = [np.array(array, dtype=np.float32) for array in network.get_weights()]
    layers = list(zip(arrays[0::2], arrays[1::2], strict=True))
    return in_units(layers, centre, spread)


FAMILY: Final[Family] = KerasFamily()
