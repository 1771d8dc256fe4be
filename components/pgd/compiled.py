"""PGD in norm inf, compiled: from 8-bit images to the model's outputs and attacked 8-bit images.

ART passes images between NumPy and the model at every step. Here all steps are one TensorFlow function. The tests
compare it with ART's class.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from evasion.components.common.attacks.runner import Attack, Generated
from evasion.components.common.data.pixels import Floats, Pixels, towards
from evasion.components.common.models.classifier import Classifier


def projected_gradient_descent(
    target: Classifier,
    *,
    eps: float,
    eps_step: float,
    max_iter: int,
    num_random_init: int,
    starting_points: Callable[[Floats], np.random.RandomState],
) -> Attack:
    """Return the attack on a model.

    Args:
        target: The model to attack.
        eps: Largest change of a pixel, on pixels in [0, 1].
        eps_step: Change of a step.
        max_iter: Number of steps.
        num_random_init: Number of random starts; an image keeps the result of the last start that fools the model.
            With 0, the attack starts at the image itself.
        starting_points: Takes a batch in [0, 1]; returns the generator that draws its starts.
    """
    shape = (None, *target.model.input_shape[1:])
    images, labels = tf.TensorSpec(shape, tf.float32), tf.TensorSpec((None, target.model.output_shape[-1]), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((), tf.float32)])
    def predict(pixels: Any, largest: Any) -> tuple[Any, Any, Any, Any]:
        x = tf.cast(pixels, tf.float32) / largest
        outputs, gradient = target.both(x)
        predicted = tf.one_hot(tf.argmax(outputs, axis=1), outputs.shape[1])
        moving = tf.logical_and(gradient != 0, gradient == gradient)  # NaN differs from itself
        return x, outputs, predicted, tf.logical_not(tf.reduce_any(moving, axis=(1, 2, 3)))

    @tf.function(input_signature=[images, labels, images])
    def attack_from(x: Any, y: Any, start: Any) -> tuple[Any, Any]:
        x_adv = steps(lambda batch: target.gradient(batch, y), x, start, eps=eps, eps_step=eps_step, max_iter=max_iter)
        return x_adv, tf.argmax(target.forward(x_adv), axis=1) != tf.argmax(y, axis=1)

    def attack(pixels: Pixels) -> Generated:
        x, outputs, predicted, without_gradient = predict(pixels, np.float32(255))
        if not num_random_init:
            x_adv, _ = attack_from(x, predicted, x)
        else:
            random = starting_points(x.numpy())
            for number in range(num_random_init):
                noise = random.uniform(-eps, eps, (len(pixels), pixels[0].size)).reshape(pixels.shape)
                start = tf.clip_by_value(x + noise.astype(np.float32), 0, 1)
                result, fooled = attack_from(x, predicted, start)
                x_adv = tf.where(fooled[:, None, None, None], result, x_adv) if number else result
        return Generated(outputs.numpy(), towards(x_adv.numpy(), pixels), without_gradient.numpy())

    return Attack(attack, thread_safe=True)


def steps(gradient: Callable[[Any], Any], x: Any, start: Any, *, eps: float, eps_step: float, max_iter: int) -> Any:
    """Return the images after steps of `eps_step` along the gradient's sign, within `eps` of `x` and in [0, 1].

    Args:
        gradient: Takes images; returns the gradient of the loss with respect to them.
        x: float32 images, (images, height, width, channels), in [0, 1].
        start: The first images, of the shape of `x`, within `eps` of it.
        eps: Largest change of a pixel, a share of the pixel range.
        eps_step: Change of a step.
        max_iter: Number of steps.
    """

    def step(x_adv: Any) -> tuple[Any]:
        value = gradient(x_adv)
        value = tf.where(tf.math.is_nan(value), tf.zeros_like(value), value)
        moved = tf.clip_by_value(x_adv + eps_step * tf.sign(value), 0.0, 1.0)
        return (x + tf.clip_by_value(moved - x, -eps, eps),)

    # Not a Python loop: Keras traces its training step without AutoGraph, and 40 steps unrolled take long to compile.
    (x_adv,) = tf.while_loop(lambda _: tf.constant(True), step, (start,), maximum_iterations=max_iter)
    return x_adv
