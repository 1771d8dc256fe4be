"""A Keras model as an ART classifier, with compiled gradients from logits, batch by batch."""

import functools
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt

from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats, Pixels
from evasion.components.common.models import artifact as model_artifact
from evasion.components.common.models.endings import SOFTMAX, ending_of


def logits_of(model: Any) -> tuple[Any, bool]:
    """Return a model whose outputs are logits, and whether that was possible.

    A saturated softmax gives gradients of exactly zero, which look like robustness (Carlini and Wagner 2017, section
    VII). The loss is therefore computed before it. A model that does not end in a softmax is returned unchanged.
    """
    ending = ending_of(model)
    return (ending.before, True) if ending.activation == SOFTMAX else (model, False)


class Pass(NamedTuple):
    """What one pass through a target computes of a batch; tensors or arrays.

    Attributes:
        outputs: Shape (images, classes): logits if `from_logits`; of several draws, the log of the mean probability.
        loss: Of each image, shape (images,).
        gradient: Of each image's loss with respect to its pixels.
    """

    outputs: Any
    loss: Any
    gradient: Any


Loss = Callable[..., Any]
OverDraws = Callable[..., tuple[Floats, Floats]]


def load(folder: Path) -> "Classifier":
    """Load a model artifact as a `Classifier`."""
    return Classifier(model_artifact.load(folder))


class Classifier:
    """A model with the functions that attacks and evaluations need.

    Attributes:
        model: The `keras.Model`, float32 (images, height, width, channels) in [0, 1] to probabilities.
        logits: The same model without its softmax.
        from_logits: Whether the outputs of `logits` are logits.
        compiled: Whether gradients are computed by TensorFlow alone, so that they can be part of a compiled step.
        straight_through: Whether gradients are those of other images, behind a defense.
        random: Whether outputs and gradients are means over random draws.
        draws: The number of these draws; 1 if nothing is random.
    """

    compiled = True
    straight_through = False
    random = False
    draws = 1

    def __init__(self, model: Any) -> None:
        import keras
        import tensorflow as tf

        from evasion.components.common.models.optimized import optimized

        self.model = model
        self.logits, self.from_logits = logits_of(model)
        logits = self._optimized = optimized(self.logits)
        # A sum over images, so that the gradient of an image does not depend on its batch.
        self.loss = keras.losses.CategoricalCrossentropy(from_logits=self.from_logits, reduction="sum")
        loss = self.loss
        zero = tf.UnconnectedGradients.ZERO  # of a model that rounds its images; otherwise it would be None
        signature = [
            tf.TensorSpec((None, *model.input_shape[1:]), tf.float32),
            tf.TensorSpec((None, model.output_shape[-1]), tf.float32),
        ]

        @tf.function(input_signature=signature[:1])
        def forward(x: Any) -> Any:
            return logits(x, training=False)

        @tf.function(input_signature=signature)
        def gradient(x: Any, y: Any) -> Any:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                value = loss(y, logits(x, training=False))
            return tape.gradient(value, x, unconnected_gradients=zero)

        @tf.function(input_signature=signature[:1])
        def both(x: Any) -> tuple[Any, Any]:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                outputs = logits(x, training=False)
                predicted = tf.one_hot(tf.argmax(outputs, axis=1), outputs.shape[1])
                value = loss(predicted, outputs)
            return outputs, tape.gradient(value, x, unconnected_gradients=zero)

        self.forward, self.gradient, self.both = forward, gradient, both
        self._last: tuple[Floats, Floats, Floats] | None = None  # images, outputs and gradient of `attacked_outputs`

    def redrawn(self) -> "Classifier":
        """Return the same target with other random draws: itself, where nothing is random."""
        return self

    def outputs(self, x: Floats) -> Floats:
        """Return the outputs of one batch, shape (images, classes): logits if `from_logits`."""
        return cast(Floats, self.forward(x).numpy())

    def attacked_outputs(self, x: Floats) -> Floats:
        """Return the outputs of one batch that an attack will move away from its predicted labels.

        The same pass computes the gradient of the loss for these labels, and `loss_gradient` returns it later. This
        takes two thirds of the time of two passes.
        """
        outputs, gradient = (tensor.numpy() for tensor in self.both(x))
        self._last = x, outputs, gradient
        return cast(Floats, outputs)

    def loss_gradient(self, x: Floats, y: Floats) -> Floats:
        """Return the gradient of each image's loss with respect to its pixels.

        Args:
            x: One batch.
            y: One-hot labels, shape (images, classes).
        """
        if self._last is not None:
            images, outputs, gradient = self._last
            if np.array_equal(outputs.argmax(axis=1), y.argmax(axis=1)) and np.array_equal(images, x):
                return gradient.copy()
        return cast(Floats, self.gradient(x, y).numpy())

    def loss_pass(self, loss: Loss, over_draws: OverDraws | None = None) -> Callable[..., Pass]:  # noqa: ARG002
        """Return the function that computes outputs, losses and gradients of a batch in one pass, compiled once.

        Args:
            loss: Takes outputs, shape (images, classes), and the further arguments of the function, all tensors;
                returns the loss of each image, shape (images,).
            over_draws: Where outputs are random, what the losses of several draws amount to. Takes the losses, shape
                (draws, images), and the further arguments, all arrays; returns the loss of each image and the weights
                of the draws' gradients, shape (draws, images). By default the mean.

        Returns:
            A function of images, float32 in [0, 1], and further arguments whose first axis is that of the images.
        """
        import tensorflow as tf

        forward = self._optimized

        def one_pass(x: Any, *arguments: Any) -> Pass:
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                outputs = forward(x, training=False)
                losses = loss(outputs, *arguments)
            # The gradient of the sum: an image's loss depends on no other image.
            gradient = tape.gradient(losses, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return Pass(outputs, losses, gradient)

        # Compiled once for all batch sizes, in whichever thread calls first.
        compiled: list[Any] = []
        lock = threading.Lock()

        def passes(x: Any, *arguments: Any) -> Pass:
            tensors = [tf.convert_to_tensor(each) for each in (x, *arguments)]
            with lock:
                if not compiled:
                    signature = [tf.TensorSpec((None, *each.shape[1:]), each.dtype) for each in tensors]
                    signature[0] = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
                    compiled.append(tf.function(one_pass, input_signature=signature).get_concrete_function())
            return cast(Pass, compiled[0](*tensors))

        return passes

    def probabilities(self, x: Floats) -> npt.NDArray[np.float64]:
        """Return class probabilities of one batch, shape (images, classes), summing to 1 in float64.

        Raises:
            ModelError: If an output of the model is not a finite number.
        """
        return self.probabilities_of(self.outputs(x))

    def probabilities_of(self, outputs: Floats) -> npt.NDArray[np.float64]:
        """Return the class probabilities of outputs. The errors are those of `probabilities`."""
        import tensorflow as tf

        if not np.isfinite(outputs).all():
            raise model_artifact.ModelError(
                "The model's outputs must be finite numbers, but some are not: training may have diverged. "
                "Train the model again with a smaller learning_rate."
            )
        exact = outputs.astype(np.float64)
        return cast(npt.NDArray[np.float64], tf.nn.softmax(exact).numpy() if self.from_logits else exact)

    @functools.cached_property
    def art(self) -> Any:
        """The model as an `art.estimators.classification.TensorFlowV2Classifier` over logits, clip values (0, 1).

        ART's attacks run on it as on ART's own class, with compiled predictions and gradients. It is created on first
        use, so that an evaluation does not spend the second that importing ART takes.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ART warns of frameworks that are not used here
            from art.estimators.classification import TensorFlowV2Classifier

        target = self

        class Compiled(TensorFlowV2Classifier):  # type: ignore[misc]
            """ART's class with `batch_size` honoured in `predict` and a compiled gradient."""

            def predict(self, x: Any, batch_size: int = 128, training_mode: bool = False, **_: Any) -> Any:
                if training_mode:
                    return super().predict(x, batch_size=batch_size, training_mode=True)
                parts = [target.outputs(x[start : start + batch_size]) for start in range(0, len(x), batch_size)]
                return np.concatenate(parts) if parts else np.zeros((0, self.nb_classes), np.float32)

            def loss_gradient(self, x: Any, y: Any, training_mode: bool = False, **_: Any) -> Any:
                if training_mode:
                    return super().loss_gradient(x, y, training_mode=True)
                return target.loss_gradient(np.asarray(x, np.float32), np.asarray(y, np.float32))

        return Compiled(
            model=self.logits,
            nb_classes=self.model.output_shape[-1],
            input_shape=self.model.input_shape[1:],
            loss_object=self.loss,
            clip_values=(0.0, 1.0),
        )


def stack(batch: list[Sample]) -> Pixels:
    """Return the images of a batch as one array, uint8, shape (images, height, width, channels)."""
    return np.stack([sample.pixels for sample in batch])
