"""The attackers of the curve: each follows the gradient of one target, by FGM and by PGD, batch by batch."""

import threading
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.common.attacks import norms
from evasion.components.common.data.pixels import Floats
from evasion.components.common.models.classifier import Classifier

REACH = 2.5
"""So far the steps of PGD at one size would lead in a straight line, in eps."""
CONFIDENT = 0.1
"""Below this mean probability of its own class, a random defense hardly restores an image."""

Flags = npt.NDArray[np.bool_]
Places = npt.NDArray[np.intp]
Labels = npt.NDArray[np.int64]


def lead(outputs: Any, own: Any) -> Any:
    """Return how far the largest other output exceeds that of the image's own class, which `own` has one-hot.

    Unlike the cross-entropy of logits it does not fade where the model is sure.
    """
    others = tf.where(own > 0, outputs.dtype.min, outputs)
    return tf.reduce_max(others, axis=1) - tf.reduce_sum(outputs * own, axis=1)


class Attacker:
    """An attacker who follows the gradient of one target.

    Args:
        target: The model, or the model behind the defense that the attacker knows.
        norm: inf, 1 or 2.
        max_iter: Number of PGD steps at each size.
        leave_below: PGD leaves an image once it fools the target and the probability of the image's own class is below
            this: 1 for as soon as it fools it, 0 for never.
    """

    def __init__(self, target: Classifier, *, norm: str, max_iter: int, leave_below: float) -> None:
        self.target, self.norm, self.max_iter, self.leave_below = target, norm, max_iter, leave_below
        self.one_hot: npt.NDArray[np.float32] = np.eye(target.model.output_shape[-1], dtype=np.float32)
        self.lock = threading.Lock()

        def cross_entropy(outputs: Any, labels: Any) -> Any:
            return keras.losses.categorical_crossentropy(labels, outputs, from_logits=target.from_logits)

        self.loss_pass = target.loss_pass(cross_entropy)
        self.lead_pass = target.loss_pass(lead)

    def on(self, x: Floats) -> "AttackedBatch":
        """Return the attack on one batch of images in [0, 1]. Several threads may call it."""
        return AttackedBatch(self, x)


class AttackedBatch:
    """One attacker's attack on one batch. It moves the images away from the target's own predictions.

    Attributes:
        x: The images.
        own: The classes that the target predicts for them.
        gradient: The gradient of the loss for these classes at `x`.
        images: What PGD has made of the images so far.
    """

    def __init__(self, attacker: Attacker, x: Floats) -> None:
        self._attacker, self.x, self.images = attacker, x, x.copy()
        with attacker.lock:  # the target keeps the gradient of the last batch that it predicted
            self.own: Labels = attacker.target.attacked_outputs(x).argmax(axis=1)
            self._labels = attacker.one_hot[self.own]
            self.gradient = _numbers(attacker.target.loss_gradient(x, self._labels))
        self._moved = False

    def fgm(self, eps: float) -> Floats:
        """Return the images after one step of size `eps` along the gradient at `x`."""
        moved: Floats = norms.moved(tf.constant(self.x), tf.constant(self.gradient), self._attacker.norm, eps).numpy()
        return moved

    def grow(self, eps: float, standing: Flags) -> None:
        """Continue PGD from the images that a smaller size has left.

        Args:
            eps: The size, at least that of the call before.
            standing: Which images to move. One that fools the target already takes all steps: it has to fool another
                model, or a defense that drew otherwise than its attacker.
        """
        attacker, places = self._attacker, np.flatnonzero(standing)
        persistent = np.zeros(len(self.x), dtype=bool)
        last_fooling: dict[int, Floats] = {}
        for step in range(attacker.max_iter if len(places) else 0):
            images = self.images[places]
            fooled, left, gradient = self._judged(places, images)
            if step == 0:
                persistent[places[fooled]] = True
            elif not attacker.leave_below:
                last_fooling |= dict(zip(places[fooled].tolist(), images[fooled], strict=True))
            moving = ~left | persistent[places]
            places, images, gradient = places[moving], images[moving], gradient[moving]
            if not len(places):
                break
            eps_step = step_size(eps, attacker.max_iter)
            self.images[places] = pgd_step(images, self.x[places], gradient, attacker.norm, eps, eps_step)
        self._moved = True
        self._return_to_fooling(last_fooling)

    def _judged(self, places: Places, images: Floats) -> tuple[Flags, Flags, Floats]:
        """Return which images fool the target, which are to be left, and the gradients to follow."""
        attacker = self._attacker
        if not self._moved and np.array_equal(images, self.x[places]):
            still = np.zeros(len(places), dtype=bool)
            return still, still, self._unfaded(places, images, self.gradient[places])
        one_pass = attacker.loss_pass(tf.constant(images), tf.constant(self._labels[places]))
        outputs = np.asarray(one_pass.outputs)
        probabilities = attacker.target.probabilities_of(outputs)[np.arange(len(places)), self.own[places]]
        fooled = outputs.argmax(axis=1) != self.own[places]
        gradient = self._unfaded(places, images, _numbers(np.asarray(one_pass.gradient)))
        return fooled, fooled & (probabilities < attacker.leave_below), gradient

    def _unfaded(self, places: Places, images: Floats, gradient: Floats) -> Floats:
        """Return the gradients, of the lead of another class where that of the cross-entropy is zero everywhere."""
        faded = np.flatnonzero(np.logical_not(gradient.any(axis=(1, 2, 3))))
        if len(faded):
            one_pass = self._attacker.lead_pass(tf.constant(images[faded]), tf.constant(self._labels[places[faded]]))
            gradient = gradient.copy()
            gradient[faded] = _numbers(np.asarray(one_pass.gradient))
        return gradient

    def _return_to_fooling(self, last_fooling: dict[int, Floats]) -> None:
        """Return to the image before of each that fooled the target once and does no longer."""
        places = np.array(list(last_fooling), dtype=np.intp)
        if not len(places):
            return
        outputs = self._attacker.target.outputs(self.images[places])
        for place in places[outputs.argmax(axis=1) == self.own[places]].tolist():
            self.images[place] = last_fooling[place]


def step_size(eps: float, max_iter: int) -> float:
    """Return the step of PGD at one size."""
    return min(eps, REACH * eps / max_iter)


def pgd_step(images: Floats, x: Floats, gradient: Floats, norm: str, eps: float, eps_step: float) -> Floats:
    """Return the images after a step of PGD: `eps_step` along the gradient, within `eps` of `x` and [0, 1]."""
    moved = norms.moved(tf.constant(images), tf.constant(gradient), norm, eps_step)
    result: Floats = x + norms.projected(moved - x, norm, eps).numpy()
    return result


def _numbers(gradient: Floats) -> Floats:
    """Return a gradient with 0 in place of NaN."""
    return np.where(np.isnan(gradient), np.float32(0), gradient)
