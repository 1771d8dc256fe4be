"""The first pass of an attack that moves an image away from its prediction: outputs, label, loss and gradient."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.common.data.pixels import Floats
from evasion.components.common.models.classifier import Pass

Labels = npt.NDArray[np.int64]


def one_hot(labels: Labels, classes: int) -> Floats:
    """Return labels as a loss takes them, float32 of shape (images, classes)."""
    rows: Floats = np.eye(classes, dtype=np.float32)[labels]
    return rows


def cross_entropy_pass(target: Any) -> Callable[..., Pass]:
    """Return the target's pass with the cross-entropy as its loss.

    Returns:
        A function of images, float32 in [0, 1], and one-hot labels, float32 of shape (images, classes). A row of zeros
        stands for the class that the pass predicts, so that one compiled function serves for the first pass, too.
    """

    def loss(outputs: Any, y: Any) -> Any:
        own = tf.one_hot(tf.argmax(outputs, axis=1), tf.shape(outputs)[1])
        y = tf.where(tf.reduce_any(y > 0, axis=1, keepdims=True), y, own)
        return keras.losses.categorical_crossentropy(y, outputs, from_logits=target.from_logits)

    return target.loss_pass(loss)  # type: ignore[no-any-return]


def predicted(target: Any, passes: Callable[..., Pass], x: Floats) -> tuple[Labels, Pass]:
    """Return the predictions of a batch, and the pass with them as labels.

    The labels are the target's predictions, not the true ones, which would leak them into the image (Kurakin et al.
    2017, arXiv:1611.01236). Behind a random defense, the prediction is that over all draws.

    Args:
        target: What is attacked.
        passes: Its `cross_entropy_pass`.
        x: The images, float32 in [0, 1].
    """
    classes = target.model.output_shape[-1]
    if target.random:
        outputs = target.outputs(x)
        labels: Labels = outputs.argmax(axis=1)
        return labels, passes(x, one_hot(labels, classes))._replace(outputs=outputs)
    at = passes(x, np.zeros((len(x), classes), np.float32))
    return np.asarray(at.outputs).argmax(axis=1), at


def without_gradient(at: Pass) -> npt.NDArray[np.bool_]:
    """Return for each image whether the gradient of its loss is zero everywhere; NaN counts as zero."""
    gradient = np.nan_to_num(np.asarray(at.gradient))
    without: npt.NDArray[np.bool_] = np.logical_not(gradient.any(axis=tuple(range(1, gradient.ndim))))
    return without
