"""How smooth the loss is around images: the cosine similarity of its gradients at an image and close to it.

Gradients that point elsewhere one 8-bit level away lead an attack nowhere (Pintor et al. 2022, "Indicators of Attack
Failure", arXiv:2106.09947): the model may look robust and not be so.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evasion.components.common.data import sampling
from evasion.components.common.data.header import Sample
from evasion.components.common.data.pixels import Floats
from evasion.components.common.defenses.transformations import generator
from evasion.components.common.results.curve import SMOOTHNESS_IMAGES
from evasion.components.security_curve.attackers import AttackedBatch

LEVEL = 1 / 255
"""Largest change of a pixel on the way to the image nearby."""


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


def smoothness(batch: Sequence[Sample], places: Sequence[int], attack: AttackedBatch, seed: int) -> Mapping[int, str]:
    """Return the cosine similarity of the gradients at an image and close to it, as text, by place.

    The image nearby differs by noise, uniform within one 8-bit level, which depends on the seed and the image alone.
    An image without a gradient at one of the two has none.

    Args:
        batch: The images.
        places: Which of them to measure.
        attack: An attack on the batch.
        seed: Seed of the noise.
    """
    if not places:
        return {}
    chosen = np.array(places, dtype=np.intp)
    noise = [_noise(seed, batch[place].source, attack.x.shape[1:]) for place in places]
    near = np.clip(attack.x[chosen] + np.stack(noise), 0, 1)
    here, there = (_flat(each) for each in (attack.gradient[chosen], attack.gradient_near(chosen, near)))
    sizes = np.linalg.norm(here, axis=1) * np.linalg.norm(there, axis=1)
    # In three digits: how a gradient is rounded depends on the batch, and shards make other batches.
    return {
        place: f"{product / size:.3f}"
        for place, product, size in zip(places, (here * there).sum(axis=1), sizes, strict=True)
        if size > 0
    }


def _noise(seed: int, source: str, shape: tuple[int, ...]) -> Floats:
    return generator(seed, f"near {source}").uniform(-LEVEL, LEVEL, shape).astype(np.float32)


def _flat(gradient: Floats) -> np.ndarray:
    """Return gradients as rows of float64, the largest value of each 1: products of small ones would be 0."""
    rows = gradient.reshape(len(gradient), -1).astype(np.float64)
    return rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), np.finfo(np.float64).tiny)
