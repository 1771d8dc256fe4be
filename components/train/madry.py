"""Adversarial training after Madry et al. 2018 (arXiv:1706.06083), compiled.

The attack is that of ART's `AdversarialTrainerMadryPGD` (`ProjectedGradientDescent`, norm inf, one random start, true
labels, every image of every batch attacked); the tests compare the two. It runs inside Keras's training step, so that
epochs, batches, validation, early stopping and seed work as in any other training. ART's trainer has a loop of its own
without them.
"""

from typing import Any

import keras
import tensorflow as tf

from evasion.components.common.models.classifier import logits_of
from evasion.components.common.models.optimized import optimized
from evasion.components.pgd.compiled import steps


def adversarially_trained(model: Any, *, eps: float, eps_step: float, max_iter: int) -> Any:
    """Return a model with the same weights whose `fit` attacks each batch before it trains on it."""
    return _Madry(model, eps, eps_step, max_iter)


def perturb(logits: Any, x: Any, y: Any, start: Any, *, eps: float, eps_step: float, max_iter: int) -> Any:
    """Return the images after PGD in norm inf within [0, 1].

    Args:
        logits: A model from images to logits.
        x: float32 images, (images, height, width, channels), in [0, 1].
        y: One-hot labels to move away from.
        start: The first images, of the shape of `x`, within `eps` of it.
        eps: Largest change of a pixel, a share of the pixel range.
        eps_step: Change of a step.
        max_iter: Number of steps.
    """

    def gradient(x_adv: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x_adv)
            loss = tf.reduce_sum(tf.nn.softmax_cross_entropy_with_logits(y, logits(x_adv, training=False)))
        return tape.gradient(loss, x_adv)

    return tf.stop_gradient(steps(gradient, x, start, eps=eps, eps_step=eps_step, max_iter=max_iter))


class _Madry(keras.Model):  # type: ignore[misc]
    def __init__(self, model: Any, eps: float, eps_step: float, max_iter: int) -> None:
        super().__init__(inputs=model.input, outputs=model.output, name=model.name)
        logits, from_logits = logits_of(model)
        self._attacked = optimized(logits, fixed=False)
        if not from_logits:
            raise ValueError("Adversarial training needs a model that ends in a softmax over logits.")
        self._attack: dict[str, Any] = {"eps": eps, "eps_step": eps_step, "max_iter": max_iter}
        self._noise = keras.random.SeedGenerator()  # seeded when the model was built

    def train_step(self, data: Any) -> Any:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        eps = self._attack["eps"]
        noise = keras.random.uniform(tf.shape(x), -eps, eps, seed=self._noise)
        start = tf.clip_by_value(x + noise, 0.0, 1.0)
        return super().train_step((perturb(self._attacked, x, y, start, **self._attack), y, sample_weight))
