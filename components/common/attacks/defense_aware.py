"""A model behind a defense, as an attacker who knows the defense sees it."""

import hashlib
from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from evasion.components.common.data.pixels import Floats, Pixels, to_float, to_pixels
from evasion.components.common.defenses.transformations import Transformation
from evasion.components.common.models.classifier import Classifier


class Defended(Classifier):
    """A classifier whose images go through a preprocessing defense first.

    Outputs are those of the defended images. The gradient is the model's at the defended image, handed to the image
    itself as if the defense were the identity: the straight-through form of BPDA (Athalye et al. 2018,
    arXiv:1802.00420, section 4.1). Of a defense that draws at random, outputs and gradients are averaged over draws:
    EOT (Athalye et al. 2018, "Synthesizing Robust Adversarial Examples", arXiv:1707.07397). The draws are the
    attacker's own, not those that the defense will make; they depend on the seed and the image alone, so neither on the
    images before it nor on the shard that it is in.

    Args:
        model: The `keras.Model`.
        transformation: The defense.
        eot_samples: Draws to average over, of a defense that is random.
        seed: Of the draws.
    """

    def __init__(self, model: Any, transformation: Transformation, *, eot_samples: int, seed: int) -> None:
        super().__init__(model)
        self._transformation = transformation
        self._draws = eot_samples if transformation.random else 1
        self._seed = seed

    def attacked_outputs(self, x: Floats) -> Floats:
        """Return `outputs`; the gradient is found with them unless it is that of further draws."""
        if self._transformation.random:
            return self.outputs(x)
        (defended,) = self._defended(x)
        return super().attacked_outputs(defended)

    def outputs(self, x: Floats) -> Floats:
        """Return the outputs for the defended images; over several draws, the logarithm of their mean probability."""
        draws = [super(Defended, self).outputs(one) for one in self._defended(x)]
        if len(draws) == 1:
            return draws[0]
        if not self.from_logits:
            return cast(Floats, np.mean(draws, axis=0))
        from scipy.special import log_softmax, logsumexp

        logs = log_softmax(np.asarray(draws, dtype=np.float64), axis=2)
        return cast(Floats, (logsumexp(logs, axis=0) - np.log(len(draws))).astype(np.float32))

    def loss_gradient(self, x: Floats, y: Floats) -> Floats:
        """Return the mean over draws of the gradient at the defended images."""
        total: npt.NDArray[np.float32] = np.zeros_like(x)
        for one in self._defended(x):
            total += super().loss_gradient(one, y)
        return total / np.float32(self._draws)

    def _defended(self, x: Floats) -> Iterable[Floats]:
        """Yield the batch as the defense makes it of the images that would be saved, once a draw."""
        pixels = to_pixels(x)
        randoms = [self._random(image) if self._transformation.random else None for image in pixels]
        for _ in range(self._draws):
            yield to_float(np.stack([*map(self._transformation.apply, pixels, randoms)]))

    def _random(self, image: Pixels) -> np.random.Generator:
        drawn = hashlib.sha256(image.tobytes()).digest()
        return np.random.default_rng([self._seed, 2, int.from_bytes(drawn[:8], "big")])
