"""PGD in small compiled steps, on a model or on a model behind a defense.

ART returns the last iterate; here each image keeps its best one. The steps are those of ART's class in the norms inf
and 2, which the tests compare. With norm 1 they differ: see `norms.moved`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from evasion.components.common.attacks import draws, norms
from evasion.components.common.attacks.predicted import cross_entropy_pass, one_hot, predicted, without_gradient
from evasion.components.common.attacks.runner import Attack, Generated
from evasion.components.common.data.pixels import Floats, Pixels, to_float
from evasion.components.common.models.classifier import Pass
from evasion.components.pgd.best import Best

Advance = Callable[[Any, Any, Any], Any]
"""Takes the original images, an iterate and the gradient there; returns the next iterate."""


def projected_gradient_descent(
    target: Any, *, norm: str, eps: float, eps_step: float, max_iter: int, num_random_init: int, seed: int
) -> Attack:
    """Return the attack on a target.

    Args:
        target: The model to attack, or a model behind a defense.
        norm: `inf`, `1` or `2`.
        eps: Largest change of an image in the norm, on pixels in [0, 1].
        eps_step: Size of a step in the norm.
        max_iter: Number of steps.
        num_random_init: Number of random starts. With 0, the attack starts at the image itself.
        seed: Of the starts; they depend on it and on each image alone.
    """
    passes = cross_entropy_pass(target)
    advance = step(target.model.input_shape[1:], norm=norm, eps=eps, eps_step=eps_step)

    def attack(pixels: Pixels) -> Generated:
        x = to_float(pixels)
        labels, before = predicted(target, passes, x)
        outputs = np.asarray(before.outputs)
        y = tf.constant(one_hot(labels, outputs.shape[1]))
        best = Best(target, pixels, labels, np.asarray(before.loss), max_iter)
        starts = _starts(pixels, x, norm, eps, num_random_init, seed)
        for start in starts if num_random_init else [None]:
            best.begin()
            for x_adv, at in iterates(lambda images: passes(images, y), advance, x, start, max_iter, before):
                best.offer(x_adv, at.outputs, at.loss)
            best.end()
        return Generated(outputs, best.pixels(), without_gradient(before), best.columns())

    return Attack(attack, thread_safe=target.compiled)


def iterates(
    passes: Callable[[Any], Pass], advance: Advance, x: Any, start: Any, max_iter: int, at_x: Pass
) -> Iterator[tuple[Any, Pass]]:
    """Yield the starting point and the iterate after each step, each with its pass.

    Args:
        passes: Computes outputs, losses and gradients of a batch.
        advance: Takes a step.
        x: The original images, float32 in [0, 1].
        start: The starting point, within the bound; None for `x`.
        max_iter: Number of steps.
        at_x: The pass at `x`.
    """
    x = tf.constant(x)
    x_adv, at = (x, at_x) if start is None else (start, passes(start))
    yield x_adv, at
    for _ in range(max_iter):
        x_adv = advance(x, x_adv, at.gradient)
        at = passes(x_adv)
        yield x_adv, at


def step(image_shape: tuple[int | None, ...], *, norm: str, eps: float, eps_step: float) -> Advance:
    """Return the compiled step of size `eps_step`, followed by the projection onto the ball of radius `eps`.

    The projection makes no change larger and reverses none, so a result in [0, 1] stays in it: see `norms.projected`.
    """

    @tf.function(input_signature=[tf.TensorSpec((None, *image_shape), tf.float32)] * 3)
    def advance(x: Any, x_adv: Any, gradient: Any) -> Any:
        gradient = tf.where(tf.math.is_nan(gradient), tf.zeros_like(gradient), gradient)
        return x + norms.projected(norms.moved(x_adv, gradient, norm, eps_step) - x, norm, eps)

    compiled: Advance = advance
    return compiled


_STARTS = 3
"""Tells the draws of starting points apart from those of a defense, for one image and one seed."""


def _starts(pixels: Pixels, x: Floats, norm: str, eps: float, number: int, seed: int) -> Iterator[Any]:
    """Yield random starting points; they are drawn as they are needed."""
    generators = draws.generators(seed, pixels, _STARTS)
    for _ in range(number):
        change = np.stack([norms.drawn(random, pixels.shape[1:], norm, eps) for random in generators])
        yield tf.constant(np.clip(x + change, 0, 1))


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

    def next_one(x_adv: Any) -> tuple[Any]:
        value = gradient(x_adv)
        value = tf.where(tf.math.is_nan(value), tf.zeros_like(value), value)
        moved = tf.clip_by_value(x_adv + eps_step * tf.sign(value), 0.0, 1.0)
        return (x + tf.clip_by_value(moved - x, -eps, eps),)

    # Not a Python loop: Keras traces its training step without AutoGraph, and 40 steps unrolled take long to compile.
    (x_adv,) = tf.while_loop(lambda _: tf.constant(True), next_one, (start,), maximum_iterations=max_iter)
    return x_adv
