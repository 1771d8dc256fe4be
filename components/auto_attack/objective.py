"""What the members of the ensemble raise: losses, and how far an image is behind the boundary of its label."""

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from scipy.special import logsumexp, softmax

from evasion.components.common.data.pixels import Floats, Pixels, to_float

OWN_PREDICTION = -1
"""A label that stands for the target's own prediction."""

_RATIO_CLASSES = 4  # the ratio divides by a difference of the first, third and fourth largest outputs
_TINY = 1e-12  # the reference adds it, too
_DOUBTFUL = np.float32(np.log(0.25))


class Objective:
    """The losses of a target and the rule by which an image is fooled.

    Args:
        target: The `Classifier` that is attacked.

    Attributes:
        classes: Number of classes.
    """

    def __init__(self, target: Any) -> None:
        self._target = target
        self.classes = int(target.model.output_shape[-1])
        self._from_logits = target.from_logits
        # Below this probability, averaged over the draws, the label has no majority in any of them.
        self._rare = np.float32(-np.log(2 * target.draws)) if target.random else None

    def loss(self, outputs: Any, labels: Any, aims: Any) -> Any:
        """Return the loss that an attack raises, for each image; one function for all members is compiled once.

        Args:
            outputs: Of the target, a tensor of shape (images, classes).
            labels: The classes to move away from, or `OWN_PREDICTION`; int32, shape (images,).
            aims: The classes to move towards; where it equals the label, any other class will do.

        Returns:
            Without an aim the cross-entropy of the label. With an aim the targeted difference-of-logits ratio of Croce
            and Hein 2020 (section 4.2), which a scaling of the logits does not change; with fewer than four classes,
            for which the ratio is not defined, the difference of the logits of the aim and the label.
        """
        scores = self.scores(outputs)
        labels = tf.where(labels < 0, tf.argmax(scores, axis=1, output_type=tf.int32), labels)
        cross_entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, scores)
        if self.classes < 2:
            return cross_entropy
        # Weights, not gathered scores: their gradient is one product, that of `tf.gather` and `tf.math.top_k` a dozen
        # operations. Scores of -inf without weight count as zeros.
        weights = tf.one_hot(tf.maximum(aims, 0), self.classes) - tf.one_hot(labels, self.classes)
        aimed = tf.reduce_sum(tf.math.multiply_no_nan(scores, weights), axis=1)
        if self.classes >= _RATIO_CLASSES:
            largest = tf.one_hot(tf.math.top_k(scores, _RATIO_CLASSES).indices, self.classes)
            weights = largest[:, 0] - (largest[:, 2] + largest[:, 3]) / 2
            aimed /= tf.reduce_sum(tf.math.multiply_no_nan(scores, weights), axis=1) + _TINY
        return tf.where(tf.logical_or(aims < 0, aims == labels), cross_entropy, aimed)

    def over_draws(self, losses: Floats, labels: Any, aims: Any) -> tuple[Floats, Floats]:
        """Return the loss of images behind a random defense, and the weights of the draws' gradients.

        Cross-entropies become that of the label's mean probability. Their mean would be ruled by the draws that are
        fooled already, for it has no bound there. The ratio is bounded, and its mean is taken.

        Args:
            losses: Of each draw, shape (draws, images).
            labels: As in `loss`.
            aims: As in `loss`.
        """
        weights = np.where(aims == labels, softmax(-losses, axis=0), np.float32(1 / len(losses)))
        mean_probability = logsumexp(-losses, axis=0) - np.log(len(losses))
        return np.where(aims == labels, -mean_probability, losses.mean(axis=0)).astype(np.float32), weights

    def scores(self, outputs: Any) -> Any:
        """Return logits, or the logarithms of probabilities, which are logits as well."""
        return outputs if self._from_logits else tf.math.log(outputs + _TINY)

    def margins(self, outputs: Any, labels: Any) -> Any:
        """Return by how much the score of the best other class exceeds that of the label, for each image."""
        scores = self.scores(outputs)
        at_label = tf.one_hot(labels, self.classes, on_value=True, off_value=False)
        others = tf.reduce_max(tf.where(at_label, np.float32(-np.inf), scores), axis=1)
        return others - tf.gather(scores, labels, batch_dims=1)

    def settled(self, outputs: Any, labels: Any) -> Any:
        """Return whether an image is fooled so surely that a run can end.

        Behind a random defense being fooled on average is not enough: the label must be so improbable that it had no
        majority in any draw. Otherwise the run would end at images that the next draw takes back.
        """
        return self._fooled(outputs, labels, self._rare)

    def beyond_doubt(self, outputs: Any, labels: Any) -> Any:
        """Return whether an image is fooled so clearly that no other member needs to attack it.

        Behind a random defense a label with a quarter of the probability or more wins many draws yet.
        """
        return self._fooled(outputs, labels, None if self._rare is None else _DOUBTFUL)

    def _fooled(self, outputs: Any, labels: Any, rarer: Any) -> Any:
        """Return whether the label is not the most probable class and, unless None, rarer than that."""
        fooled = self.margins(outputs, labels) > 0
        if rarer is None:
            return fooled
        scores = self.scores(outputs)
        probability = tf.gather(scores, labels, batch_dims=1) - tf.reduce_logsumexp(scores, axis=1)
        return tf.logical_and(fooled, probability < rarer)

    def judged(self, pixels: Pixels, labels: npt.NDArray[np.int32]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Return `margins` and `settled` of a batch of images, which are uint8."""
        x = to_float(pixels)
        margins, settled = self._judge(tf.constant(x if self._target.compiled else self._target.outputs(x)), labels)
        return margins.numpy(), settled.numpy()

    @functools.cached_property
    def _judge(self) -> Any:
        """The compiled function behind `judged`: with the pass, if that can be compiled, of images, else of outputs.

        Square asks it for every candidate; so it is one function, and a concrete one, which is called in half the time.
        """
        target = self._target
        shape = (None, *target.model.input_shape[1:]) if target.compiled else (None, None)

        def judge(values: Any, labels: Any) -> tuple[Any, Any]:
            outputs = target.forward(values) if target.compiled else values
            return self.margins(outputs, labels), self.settled(outputs, labels)

        signature = [tf.TensorSpec(shape, tf.float32), tf.TensorSpec((None,), tf.int32)]
        return tf.function(judge, input_signature=signature, autograph=False).get_concrete_function()

    def likely(self, outputs: Floats, labels: npt.NDArray[np.int32], count: int) -> npt.NDArray[np.int32]:
        """Return the `count` most likely classes other than the label, shape (images, count)."""
        others = outputs.astype(np.float64)
        others[np.arange(len(outputs)), labels] = -np.inf
        return np.argsort(-others, axis=1, kind="stable")[:, :count].astype(np.int32)
