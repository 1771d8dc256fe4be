"""The geometry of the norms inf, 1 and 2: steps along a gradient, projections onto a ball, and starts in it."""

from typing import Any

import numpy as np
import tensorflow as tf

from evasion.components.common.data.pixels import Floats


def moved(x: Any, gradient: Any, norm: str, eps: float) -> Any:
    """Return the images in [0, 1] after the step of size `eps` that increases the loss most, to first order.

    With the norms inf and 2, the step leaves [0, 1] and is clipped (Goodfellow et al. 2015, arXiv:1412.6572), as in
    ART. With norm 1, components move to 0 or 1 in order of their absolute gradient, each as far as its sign leads,
    until their changes sum up to `eps`; the last one moves partially. This is the exact maximum of the linearised loss
    within the norm and [0, 1]. ART puts all of it into one component and clips, so that no `eps` above 1 has an effect.

    Args:
        x: float32 images, (images, height, width, channels), in [0, 1].
        gradient: Of the loss, of the shape of `x`, without NaN.
        norm: `inf`, `1` or `2`.
        eps: Size of the step in the norm, on pixels in [0, 1].
    """
    if norm == "1":
        return x + _spent(x, gradient, eps)
    size = tf.constant(eps, tf.float32)
    if norm == "inf":
        return tf.clip_by_value(x + size * tf.sign(gradient), 0, 1)
    flat = _flat(gradient)
    direction = tf.math.divide_no_nan(flat, tf.norm(flat, axis=1, keepdims=True))
    return tf.clip_by_value(x + size * tf.reshape(direction, tf.shape(gradient)), 0, 1)


def _spent(x: Any, gradient: Any, eps: float) -> Any:
    """Return the change of norm 1: `eps` spent in order of |gradient|, each component within its room."""
    gradients, values = _flat(gradient), _flat(x)
    sign = tf.sign(gradients)
    room = tf.where(sign > 0, 1 - values, values) * tf.abs(sign)
    order = tf.argsort(tf.abs(gradients), axis=1, direction="DESCENDING", stable=True)
    # In float64, so that a sum over all pixels of a large image does not exceed eps.
    sorted_room = tf.cast(tf.gather(room, order, batch_dims=1), tf.float64)
    left = tf.cast(eps, tf.float64) - tf.cumsum(sorted_room, axis=1, exclusive=True)
    change = tf.cast(tf.clip_by_value(left, 0, sorted_room), tf.float32)
    back = tf.argsort(order, axis=1)
    return tf.reshape(sign * tf.gather(change, back, batch_dims=1), tf.shape(x))


def projected(change: Any, norm: str, eps: float) -> Any:
    """Return the nearest change, in the Euclidean distance, whose norm is at most `eps`.

    No component grows or changes its sign. So where the change keeps images in [0, 1], the result does too.

    Args:
        change: float32, (images, height, width, channels).
        norm: `inf`, `1` or `2`. With 1: Duchi et al. 2008, "Efficient Projections onto the l1-Ball".
        eps: Largest norm, on pixels in [0, 1].
    """
    if norm == "inf":
        return tf.clip_by_value(change, -eps, eps)
    flat = _flat(change)
    if norm == "2":
        size = tf.norm(flat, axis=1, keepdims=True)
        return tf.reshape(flat * tf.minimum(1.0, tf.math.divide_no_nan(eps, size)), tf.shape(change))
    sizes = tf.cast(tf.abs(flat), tf.float64)
    descending = tf.sort(sizes, axis=1, direction="DESCENDING")
    count = tf.range(1, tf.shape(flat)[1] + 1, dtype=tf.float64)
    # All components shrink by what the largest ones, those that do not become zero, exceed eps by, shared equally.
    shrink = tf.reduce_max((tf.cumsum(descending, axis=1) - tf.cast(eps, tf.float64)) / count, axis=1, keepdims=True)
    kept = tf.cast(tf.maximum(sizes - tf.maximum(shrink, 0), 0), tf.float32)
    return tf.reshape(tf.sign(flat) * kept, tf.shape(change))


def _flat(x: Any) -> Any:
    return tf.reshape(x, (tf.shape(x)[0], -1))


def drawn(random: np.random.Generator, shape: tuple[int, ...], norm: str, eps: float) -> Floats:
    """Draw a change of one image, uniformly from the ball of radius `eps`."""
    if norm == "inf":
        return random.uniform(-eps, eps, shape).astype(np.float32)
    change = random.standard_normal(shape) if norm == "2" else random.laplace(size=shape)
    radius = eps * random.random() ** (1 / change.size)
    uniform: Floats = (change * (radius / np.linalg.norm(change.ravel(), int(norm)))).astype(np.float32)
    return uniform
