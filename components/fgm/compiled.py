"""FGM: on a model, one TensorFlow function from 8-bit images to the model's outputs and attacked images.

ART predicts the labels, computes the gradient in a second pass, and does the rest in NumPy. Here labels, gradient,
step and clipping are one TensorFlow function. The tests compare it with ART's class, but for norm 1, where the step
differs: see `norms.moved`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from evasion.components.common.attacks.norms import moved
from evasion.components.common.attacks.predicted import cross_entropy_pass, predicted, without_gradient
from evasion.components.common.attacks.runner import Attack, Generated
from evasion.components.common.data.pixels import Pixels, to_float, towards
from evasion.components.common.models.classifier import Classifier

__all__ = ["fast_gradient_step", "moved"]


def fast_gradient_step(target: Any, *, norm: str, eps: float) -> Attack:
    """Return the attack on a target.

    Args:
        target: The model to attack, or a model behind a defense.
        norm: `inf`, `1` or `2`.
        eps: Size of the step in this norm, on pixels in [0, 1].
    """
    return _on_the_model(target, norm, eps) if target.compiled else _through_the_defense(target, norm, eps)


def _through_the_defense(target: Any, norm: str, eps: float) -> Attack:
    """Return the attack with one pass through the defense, or through each draw of it."""
    passes = cross_entropy_pass(target)

    def attack(pixels: Pixels) -> Generated:
        x = to_float(pixels)
        _, at = predicted(target, passes, x)
        gradient = np.nan_to_num(np.asarray(at.gradient))
        x_adv = moved(tf.constant(x), tf.constant(gradient), norm, eps).numpy()
        return Generated(np.asarray(at.outputs), towards(x_adv, pixels), without_gradient(at))

    return Attack(attack)


def _on_the_model(target: Classifier, norm: str, eps: float) -> Attack:
    batch = tf.TensorSpec((None, *target.model.input_shape[1:]), tf.uint8)

    # The divisor is an argument: TensorFlow would replace the division by a constant with a multiplication by its
    # inverse, which rounds differently. With eps 0.1, which is 25.5 levels, the rounding decides most pixels.
    @tf.function(input_signature=[batch, tf.TensorSpec((), tf.float32)])
    def step(pixels: Any, largest: Any) -> tuple[Any, Any, Any]:
        x = tf.cast(pixels, tf.float32) / largest
        outputs, gradient = target.both(x)
        gradient = tf.where(tf.math.is_nan(gradient), tf.zeros_like(gradient), gradient)
        x_adv = moved(x, gradient, norm, eps)
        return outputs, x_adv, tf.logical_not(tf.reduce_any(gradient != 0, axis=(1, 2, 3)))

    def attack(pixels: Pixels) -> Generated:
        outputs, x_adv, without = (tensor.numpy() for tensor in step(pixels, np.float32(255)))
        return Generated(outputs, towards(x_adv, pixels), without)

    return Attack(attack, thread_safe=True)
