"""A model behind a defense: the target of an attacker who knows the defense."""

import copy
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from evasion.components.common.attacks import draws
from evasion.components.common.data.pixels import Floats, to_float, to_pixels
from evasion.components.common.defenses.transformations import Transformation
from evasion.components.common.models.classifier import Classifier, Loss, OverDraws, Pass

AT_ONCE_BYTES = 4 << 20
"""Bytes of images of several draws that the model is given at once."""


class Defended(Classifier):
    """A classifier that passes its images through a preprocessing defense first.

    The outputs are those for the defended images. The gradient is the model's at the defended image, used for the
    original image as if the defense were the identity: the straight-through form of BPDA (Athalye et al. 2018,
    arXiv:1802.00420, section 4.1). If the defense is random, outputs and gradients are averaged over draws: EOT
    (Athalye et al. 2018, "Synthesizing Robust Adversarial Examples", arXiv:1707.07397). The attacker draws for itself;
    the defense will draw other numbers. The draws depend on the seed and the image alone, not on the images before it
    or on its shard.

    Args:
        model: The `keras.Model`.
        transformation: The defense.
        eot_samples: Draws to average over if the defense is random.
        seed: Seed of the draws.
    """

    compiled = False
    straight_through = True

    def __init__(self, model: Any, transformation: Transformation, *, eot_samples: int, seed: int) -> None:
        super().__init__(model)
        self.random = transformation.random
        self._transformation = transformation
        self.draws = eot_samples if transformation.random else 1
        self._seed = seed
        self._stream = 2

    def redrawn(self) -> "Defended":
        """Return the same target with other draws of a random defense."""
        other = copy.copy(self)
        other._stream += 1
        return other

    def attacked_outputs(self, x: Floats) -> Floats:
        """Return `outputs`. Unless the defense is random, the gradient is computed in the same pass."""
        if self._transformation.random:
            return self.outputs(x)
        (defended,) = self._defended(x)
        return super().attacked_outputs(defended)

    def outputs(self, x: Floats) -> Floats:
        """Return the outputs for the defended images; of several draws, the logarithm of their mean probability."""
        parts = [super(Defended, self).outputs(defended) for defended in self._defended_at_once(x)]
        return self._averaged(_by_draw(parts, len(x)))

    def loss_pass(self, loss: Loss, over_draws: OverDraws | None = None) -> Callable[..., Pass]:
        """Return the function that computes outputs, losses and gradients of a batch, of all draws together."""
        one_pass = super().loss_pass(loss)

        def passes(x: Any, *arguments: Any) -> Pass:
            if self.draws == 1:
                (defended,) = self._defended(np.asarray(x))
                return one_pass(tf.constant(defended), *arguments)
            parts = []
            for defended in self._defended_at_once(np.asarray(x)):
                draws = len(defended) // len(x)
                parts.append(one_pass(tf.constant(defended), *(np.concatenate([each] * draws) for each in arguments)))
            outputs, losses, gradients = (
                _by_draw([np.asarray(value) for value in values], len(x)) for values in zip(*parts, strict=True)
            )
            if over_draws is None:
                return Pass(self._averaged(outputs), losses.mean(axis=0), gradients.mean(axis=0))
            of_images, weights = over_draws(losses, *map(np.asarray, arguments))
            return Pass(self._averaged(outputs), of_images, np.einsum("dn,dn...->n...", weights, gradients))

        return passes

    def _defended_at_once(self, x: Floats) -> Iterator[Floats]:
        """Yield the defended batches of all draws, of small images several draws at once: it fills the cores."""
        at_once = max(1, AT_ONCE_BYTES // max(1, x.nbytes))
        draws = iter(self._defended(x))
        while some := list(islice(draws, at_once)):
            yield np.concatenate(some)

    def _averaged(self, draws: Floats) -> Floats:
        """Return what outputs of shape (draws, images, classes) amount to."""
        if len(draws) == 1:
            return cast(Floats, draws[0])
        if not self.from_logits:
            return cast(Floats, np.mean(draws, axis=0))
        from scipy.special import log_softmax, logsumexp

        logs = log_softmax(np.asarray(draws, dtype=np.float64), axis=2)
        return cast(Floats, (logsumexp(logs, axis=0) - np.log(len(draws))).astype(np.float32))

    def loss_gradient(self, x: Floats, y: Floats) -> Floats:
        """Return the mean over draws of the gradient at the defended images."""
        total: npt.NDArray[np.float32] = np.zeros_like(x)
        for defended in self._defended(x):
            total += super().loss_gradient(defended, y)
        return total / np.float32(self.draws)

    def _defended(self, x: Floats) -> Iterable[Floats]:
        """Yield the defended batch once for each draw. The defense gets the 8-bit images that would be saved."""
        pixels = to_pixels(x)
        random = self._transformation.random
        generators = draws.generators(self._seed, pixels, self._stream) if random else [None] * len(pixels)
        for _ in range(self.draws):
            yield to_float(np.stack([*map(self._transformation.apply, pixels, generators)]))


def _by_draw(parts: list[Floats], images: int) -> Floats:
    """Return values of one draw after the other, of so many images each, with the draws as the first axis."""
    whole = np.concatenate(parts)
    return whole.reshape(-1, images, *whole.shape[1:])
