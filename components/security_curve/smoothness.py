"""How smooth the loss is around images: whether it changes as its gradient says.

A loss that jumps within one 8-bit level leads an attack that follows its gradient nowhere (Pintor et al. 2022,
"Indicators of Attack Failure", arXiv:2106.09947): the model may look robust and not be so. The direction of the
gradient does not tell: between its jumps, a network of k winners that take all (Xiao et al. 2020, arXiv:1905.10510) has
gradients as constant as any other.
"""

import heapq
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from evasion.components.common.data import sampling
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.models.classifier import Classifier
from evasion.components.common.results.curve import SMOOTHNESS_IMAGES
from evasion.components.security_curve.attackers import lead

LEVEL = 1 / 255
"""Largest change of a pixel on the way from an image to the one nearby."""

JITTER = 8 / 255
"""Largest change of a pixel before that.

Equal pixels, such as the background of a digit, lie on the kinks of a max pooling or a ReLU, where a gradient says
little of any network. Attacked images have left these.
"""


class Sampled:
    """Selects the images of the lowest ranks so far, in the order that they come in."""

    def __init__(self) -> None:
        self._ranks: list[int] = []

    def places(self, originals: Iterable[str]) -> list[int]:
        """Return the places of images that are among the lowest so far; those of the lowest ranks of all always are."""
        return [place for place, original in enumerate(originals) if self._takes(-sampling.rank(original))]

    def _takes(self, rank: int) -> bool:
        if len(self._ranks) < SMOOTHNESS_IMAGES:
            heapq.heappush(self._ranks, rank)
            return True
        return heapq.heappushpop(self._ranks, rank) != rank


class Smoothness:
    """Measures how smooth the loss of a model is.

    The loss is how far the largest other output exceeds that of the predicted class: unlike the cross-entropy it does
    not fade where the model is sure. It is measured between two images near the original: one differs from it by noise,
    uniform within `JITTER`, the other from the first by noise within `LEVEL`.

    Args:
        target: The model. (The gradient of a defended one is not that of its loss.)
        seed: Seed of the noise, which depends on it and on the image alone.
    """

    def __init__(self, target: Classifier, seed: int) -> None:
        self._seed = seed
        self._pass = target.loss_pass(lead)

    def of(self, batch: Sequence[Sample], x: Floats, labels: Floats) -> list[float]:
        """Return the smoothness around each image, from 0 to 1.

        It is 1 - |d - g| / (|d| + |g|), where d is how the loss changes from one image to the other, and g how it would
        by its gradient: 1 for a linear loss, 0 where one of the two is nothing beside the other or points elsewhere.

        Args:
            batch: The images.
            x: The same in [0, 1].
            labels: The classes that the model predicts for them, one-hot.
        """
        if not len(x):
            return []
        generators = [generator(self._seed, f"near {sample.source}") for sample in batch]
        first, second = (
            np.stack([each.uniform(-size, size, x.shape[1:]) for each in generators]).astype(np.float32)
            for size in (JITTER, LEVEL)
        )
        start = np.clip(x + first, 0, 1)
        near = np.clip(start + second, 0, 1)
        here, there = (self._pass(tf.constant(each), tf.constant(labels)) for each in (start, near))
        change = np.asarray(there.loss, dtype=np.float64) - np.asarray(here.loss, dtype=np.float64)
        by_gradient = (np.asarray(here.gradient, dtype=np.float64) * (near - start)).sum(axis=(1, 2, 3))
        sizes = np.abs(change) + np.abs(by_gradient)
        # A loss that does not change at all is as smooth as can be; other checks tell of it.
        apart = np.divide(np.abs(change - by_gradient), sizes, out=np.zeros_like(sizes), where=sizes > 0)
        return [float(value) for value in 1 - np.nan_to_num(apart, nan=1)]
